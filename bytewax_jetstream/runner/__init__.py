"""What stands behind `bytewax-jetstream run`: what Bytewax's own runner lacks.

Begin with `runner`: it is the order in which everything happens.
"""

from .cluster import Cluster
from .recovery_directory import Recovery
from .runner import Run, run

__all__ = ["Cluster", "Recovery", "Run", "run"]
