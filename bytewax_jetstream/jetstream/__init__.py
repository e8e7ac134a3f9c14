"""NATS JetStream: the publisher, the streams it needs, the source; the only place that imports
nats.
"""
