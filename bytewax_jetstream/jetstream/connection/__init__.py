"""A connection to NATS that replaces itself; authentication, TLS, requests to the JetStream API."""

from .connection import DENIED_PUBLISH, Connection
from .failures import JetStreamApiError, words

__all__ = ["DENIED_PUBLISH", "Connection", "JetStreamApiError", "words"]
