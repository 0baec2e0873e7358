"""The pytest plugin: fixtures whose names begin with ``vhost_``, none of them automatic."""
