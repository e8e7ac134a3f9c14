"""The Kafka side: publisher, topics, source."""
