"""Draws the dashboard's panels from a real run, whose broker dies for a quarter of a minute.

`make picture`. The flow reads one nats-server and publishes to another; the other one is killed.
"""

import itertools
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import matplotlib as mpl
import yaml

from bytewax_jetstream.testing import NatsServer
from k8s.components.monitoring.panels import ROWS, Panel, Unit
from tests.support.metered import Metered
from tests.support.processes import free_port, start_run
from tests.support.reading import numbered, write
from tests.support.streams import make_stream
from tests.support.waiting import until

RATE = 300
"""Messages a second."""
BEFORE, AWAY, AFTER = 30, 15, 40
"""Seconds before, during and after the outage."""
GIVEN = {"$namespace": ".*", "$job": ".*", "$__rate_interval": "5s", "[5m]": "[15s]"}
"""What the queries have instead of Grafana's variables, for a run that is this short."""
UNITS: dict[Unit, str] = {
    "mps": "messages a second",
    "s": "seconds",
    "percentunit": "part of it",
    "short": "",
}
COLUMNS = 3


class Seen(NamedTuple):
    """A run: when it began and ended, and when the broker was away."""

    began: float
    killed: float
    back: float
    ended: float


class Prometheus:
    """A Prometheus that scrapes one port every second."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **query: object) -> Any:
        """What its API answers."""
        with urlopen(f"http://{self._address}/api/v1/{path}?{urlencode(query)}", timeout=30) as got:
            return json.load(got)["data"]

    def is_up(self) -> bool:
        """Whether it has scraped something."""
        try:
            return bool(self.ask("query", query="bytewax_jetstream_lanes")["result"])
        except OSError:
            return False


@contextmanager
def _prometheus(port: int, folder: Path) -> Iterator[Prometheus]:
    address = f"127.0.0.1:{free_port()}"
    target = {"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "metered", **target}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with (folder / "prometheus.log").open("ab") as log:
        running = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield Prometheus(address)
    finally:
        running.terminate()
        running.wait(30)


def _feed(url: str, stop: threading.Event) -> None:
    """Write numbers at a steady rate."""
    first = 10
    began = time.monotonic()
    while not stop.wait(0.1):
        due = 10 + round((time.monotonic() - began) * RATE)
        write(url, numbered("in.a", due - first, first=first))
        first = due


def _run(read: NatsServer, written: NatsServer, prometheus: Prometheus) -> Seen:
    stop = threading.Event()
    feeder = threading.Thread(target=_feed, args=(read.url, stop), daemon=True)
    feeder.start()
    until(prometheus.is_up, 240)
    time.sleep(5)  # so that rates have something to compare
    began = time.time()
    time.sleep(BEFORE)
    killed = time.time()
    written.kill()
    time.sleep(AWAY)
    written.start()
    back = time.time()
    time.sleep(AFTER)
    stop.set()
    feeder.join()
    return Seen(began, killed, back, time.time())


def _lines(
    panel: Panel, prometheus: Prometheus, seen: Seen
) -> dict[str, list[tuple[float, float]]]:
    """The lines of a panel by their legend: seconds since the beginning, and values."""
    lines = {}
    for promql, legend in panel.queries:
        for variable, given in GIVEN.items():
            promql = promql.replace(variable, given)
        span = {"start": seen.began, "end": seen.ended, "step": 1}
        for series in prometheus.ask("query_range", query=promql, **span)["result"]:
            name = legend
            for label in ("instance", "broker", "step_id", "stream", "reason"):
                name = name.replace("{{" + label + "}}", series["metric"].get(label, ""))
            values = {round(at - seen.began): float(value) for at, value in series["values"]}
            # A second without a value breaks the line.
            points = [
                (float(at), values.get(at, math.nan))
                for at in range(round(seen.ended - seen.began) + 1)
            ]
            # What is always 0 would only fill the legend.
            if any(value > 0 for _, value in points):
                lines[name.removeprefix(series["metric"].get("instance", "")).strip()] = points
    return lines


def _draw(prometheus: Prometheus, seen: Seen, paths: Sequence[Path]) -> None:
    mpl.use("Agg")  # draws into a file, without a window
    mpl.rcParams |= {"svg.hashsalt": "metrics", "svg.fonttype": "none"}  # text stays text
    from matplotlib import pyplot as plt

    panels = list(itertools.chain.from_iterable(panels for _, panels in ROWS))
    rows = math.ceil(len(panels) / COLUMNS)
    figure, grid = plt.subplots(rows, COLUMNS, figsize=(17, 3.4 * rows), layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid.flat, panels, strict=False):
        for name, points in _lines(panel, prometheus, seen).items():
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1.2)
        axes.axvspan(seen.killed - seen.began, seen.back - seen.began, color="C3", alpha=0.12)
        axes.set(title=panel.title, ylabel=UNITS[panel.unit], xlim=(0, seen.ended - seen.began))
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.2)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small", loc="upper left")
        else:
            axes.text(0.5, 0.5, "none", transform=axes.transAxes, ha="center")
    figure.supxlabel("seconds; the server that is published to is away in the red part")
    for path in paths:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def main(paths: Sequence[Path]) -> int:
    """Run the flow through its outage, and draw what Prometheus saw."""
    if shutil.which("prometheus") is None:
        print("there is no prometheus on PATH: install Debian's package prometheus")
        return 1
    with TemporaryDirectory() as name, NatsServer() as read, NatsServer() as written:
        folder, port = Path(name), free_port()
        make_stream(read.url, "IN", "in.>")
        make_stream(written.url, "OUT", "out", allow_batched=True)
        told = Metered("jetstream", read.url, "IN", "out", writes_at=written.url)
        options = ("-s", 1, "--metrics-port", port)
        log = folder / "log"
        with (
            start_run(
                "tests.support.metered:flow", *options, log=log, environment=told.environment
            ),
            _prometheus(port, folder) as prometheus,
        ):
            seen = _run(read, written, prometheus)
            _draw(prometheus, seen, paths)
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
