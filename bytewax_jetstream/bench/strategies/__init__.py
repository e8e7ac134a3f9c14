"""The strategies: each connects, warms up, starts the clock, publishes, stops it, closes, and says
what was acked.
"""
