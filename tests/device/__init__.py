"""Devices written in Python that misbehave, in the test's own process.

A back-end serves the device on a socket, and the front-end that shares no code with the package
drives it. After each test the process holds as many descriptors, mappings of guest memory and
threads as before, and a second device still answers.
"""
