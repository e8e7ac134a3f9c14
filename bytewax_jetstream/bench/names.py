"""Names that the brokers and the strategies must agree on."""

__all__ = ["ID_HEADERS", "STREAM"]

STREAM = "BYTEWAX_JETSTREAM_BENCH"
ID_HEADERS = {"msgid": "Nats-Msg-Id", "header": "Event-Id"}
"""The header that carries the event id; by the first, the server recognises duplicates."""
