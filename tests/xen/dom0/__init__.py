"""Runs in dom0: an empty guest made by hypercalls, and tests that map its memory."""
