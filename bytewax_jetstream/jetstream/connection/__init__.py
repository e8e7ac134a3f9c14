"""A connection to NATS that replaces itself; authentication, TLS, requests to the JetStream API."""

from .connection import DENIED_PUBLISH, Connection
from .control_lines import DEFAULT_CONTROL_LINE
from .failures import JetStreamApiError, words

__all__ = ["DEFAULT_CONTROL_LINE", "DENIED_PUBLISH", "Connection", "JetStreamApiError", "words"]
