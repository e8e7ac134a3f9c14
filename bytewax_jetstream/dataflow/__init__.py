"""The steps, sinks and sources behind the operators."""
