"""Reading a recovery state where no class of this package can be found."""

import io
import pickle
from datetime import timedelta
from typing import Any

__all__ = ["plain"]


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        assert (module, name) == ("datetime", "timedelta"), f"{module}.{name} is in the state"
        return timedelta


def plain(state: bytes) -> Any:
    """A pickled state, which may hold plain values and `timedelta`s only."""
    return _Restricted(io.BytesIO(state)).load()
