"""Reading JetStream: by sequence, or through a durable consumer."""

from .source import JetStreamSource

__all__ = ["JetStreamSource"]
