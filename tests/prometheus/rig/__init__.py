"""Prometheus from Debian's archive, unpacked into the cache."""
