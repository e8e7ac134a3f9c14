"""The JetStream publisher: encoding, batches, groups, error codes, and what is known of topics."""

from .publisher import JetStreamPublisher

__all__ = ["JetStreamPublisher"]
