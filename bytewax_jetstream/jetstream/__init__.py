"""NATS JetStream: connection, publisher, source and streams; all that needs nats-py."""
