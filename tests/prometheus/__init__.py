"""A real Prometheus scrapes a back-end."""
