"""Kafka: the publisher with its error codes, the source, and topics."""
