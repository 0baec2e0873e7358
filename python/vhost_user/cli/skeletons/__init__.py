"""Packages that ``vhost-user new`` makes.

A module for each kind, with ``FILES``: paths and texts, in both of which ``{name}``, ``{module}``
and ``{Class}`` stand for the names.
"""
