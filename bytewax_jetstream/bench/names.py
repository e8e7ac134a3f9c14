"""What the benchmark's two sides have to agree on."""

__all__ = ["ID_HEADERS", "STREAM"]

STREAM = "BYTEWAX_JETSTREAM_BENCH"
ID_HEADERS = {"msgid": "Nats-Msg-Id", "header": "Event-Id"}
"""The header that carries the event id; the server keeps a duplicate table for the first."""
