"""What is sent when, tried again and settled: the decisions, with no I/O and no clock. Begin with
`dispatch.py`.
"""
