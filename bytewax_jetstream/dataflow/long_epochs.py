"""`LongEpochs`: epochs whose older part a crash could store twice; the first is logged."""

import logging
import threading

from ..pool import Lane

__all__ = ["LongEpochs"]

log = logging.getLogger(__name__)


class LongEpochs:
    """The epochs of one publish step that are open for too long.

    A crash publishes the whole epoch again, and its first envelopes are stored twice if the stream
    has forgotten their event ids by then. The next run needs time to start, so half of that time is
    the limit.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._told = False
        self._lock = threading.Lock()

    def add(self, lane: Lane, epoch: int, seconds: float, remembered: float) -> None:
        """Count an epoch, and log the first.

        :arg seconds: For how long it has been open.
        :arg remembered: For how long its streams remember an event id.
        """
        lane.count_long_epoch()
        with self._lock:
            told, self._told = self._told, True
        if not told:
            log.warning(
                "%s: epoch %d has been open for %.3g s, and its streams remember event ids for "
                "%g s: after a crash later than that, what it stored first is stored again; use "
                "shorter epochs, or raise duplicate_window above twice their length; further ones "
                "are counted in the statistics (long_epochs)",
                self._step,
                epoch,
                seconds,
                remembered,
            )
