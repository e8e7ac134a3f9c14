"""What stands behind the operators in Bytewax's engine."""
