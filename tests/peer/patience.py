"""How long a test waits for what must come."""

PATIENCE = 60.0
"""Seconds until a wait is given up, which is an error of the test's.

It says nothing of how fast anything has to be: on a machine that has other things to do, or that is
emulated, what takes a millisecond elsewhere has taken many seconds.
"""
