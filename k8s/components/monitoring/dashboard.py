"""Makes `dashboard.json` for Grafana 11 of the panels: `make metrics`.

It needs the dependency group `dashboard`.
"""

from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from k8s.components.monitoring.panels import ROWS, Panel, Unit

__all__ = ["PATH", "as_json"]

PATH = Path(__file__).with_name("dashboard.json")
SOURCE = DataSourceRef("prometheus", "$datasource")
SHOWN: dict[Unit, str] = {"mps": "cps", "s": "s", "percentunit": "percentunit", "short": "short"}
"""Grafana's units; messages a second are counts a second there."""
WIDTH, HEIGHT = 8, 8
"""Of a panel, on a grid that is 24 wide."""


def _panel(number: int, panel: Panel) -> timeseries.Panel:
    legend = common.VizLegendOptions()
    legend.display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True)
    made = timeseries.Panel().id(number).title(panel.title).description(panel.about)
    made.unit(SHOWN[panel.unit]).min(0).datasource(SOURCE).legend(legend)
    made.span(WIDTH).height(HEIGHT)
    if panel.unit == "percentunit":
        made.max(1)
    for ref, query in zip("ABCDEF", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(ref).datasource(SOURCE).range()
        made.with_target(target.expr(query.promql).legend_format(query.legend))
    return made


def _variable(name: str, label: str, of: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    made = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(of)
    made.multi(True).include_all(True).all_value(".*").current(everything)
    return made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)


def as_json() -> str:
    """The dashboard, as Grafana imports it."""
    namespaces = "label_values(bytewax_jetstream_lanes, namespace)"
    jobs = 'label_values(bytewax_jetstream_lanes{namespace=~"$namespace"}, job)'
    made = (
        dashboard.Dashboard("Dataflows (bytewax_jetstream)")
        .uid("bytewax-jetstream")
        .description("What dataflows publish and read, and how their brokers answer.")
        .tags(["bytewax", "jetstream", "kafka"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .readonly()
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(_variable("namespace", "Namespace", namespaces))
        .with_variable(_variable("job", "Dataflow", jobs))
    )
    number = 0
    for title, panels in ROWS:
        made.with_row(dashboard.Row(title))
        for panel in panels:
            number += 1
            made.with_panel(_panel(number, panel))
    return str(JSONEncoder(sort_keys=True, indent=2).encode(made.build())) + "\n"


if __name__ == "__main__":
    PATH.write_text(as_json())
