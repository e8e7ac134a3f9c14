"""Publish a Bytewax dataflow to NATS JetStream, and get every publish result back as a stream."""
