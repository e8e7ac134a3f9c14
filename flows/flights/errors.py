"""What can go wrong in this job; the demo prints the sentence and exits non-zero."""

__all__ = ["AuditError", "FlightsError", "RunDirectoryError"]


class FlightsError(Exception):
    """The run stopped; start it again to continue after its last committed epoch."""


class RunDirectoryError(FlightsError):
    """The run directory cannot be used; nothing was read or published."""


class AuditError(FlightsError):
    """The stream could not be read; its messages are untouched."""
