"""The served process of the hostile suite; nothing here is hostile, but the account is the same."""

from hostile.conftest import pytest_configure, server, servers

__all__ = ["pytest_configure", "server", "servers"]
