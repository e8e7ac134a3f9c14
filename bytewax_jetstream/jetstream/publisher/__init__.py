"""Publishing to JetStream: encoding, batches, groups, error codes and what is known of the streams."""

from .publisher import JetStreamPublisher

__all__ = ["JetStreamPublisher"]
