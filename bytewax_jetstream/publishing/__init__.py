"""The seam between the pool and a broker: all that a broker may import of the publishing side."""
