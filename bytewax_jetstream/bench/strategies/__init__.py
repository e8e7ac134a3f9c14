"""The strategies.

Each connects, publishes the warm-up, starts the clock, publishes, stops the clock, closes, and
returns what was acked.
"""
