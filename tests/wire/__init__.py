"""Bytes on the wire: conversations written down by hand, and recordings of a real front-end."""
