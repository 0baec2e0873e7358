"""Device classes. They know no sockets and no threads."""
