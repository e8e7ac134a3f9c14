"""What a process of a dataflow tells Prometheus, on Bytewax's `/metrics`.

Bytewax appends the default registry of `prometheus_client` to what it serves, so one collector in
that registry is enough, and there is no second port. Nothing is counted for each message: counts
are added for each submission and each delivery, or read when somebody scrapes.

`table` names the metrics, `meters` gathers them.
"""

from .counts import LaneCounts, barrier_waited, lane_counts
from .meters import Meter, Sample, retire, watch
from .sources import Partition
from .spread import Spread
from .table import Metric

__all__ = [
    "LaneCounts",
    "Meter",
    "Metric",
    "Partition",
    "Sample",
    "Spread",
    "barrier_waited",
    "lane_counts",
    "retire",
    "watch",
]
