"""The pytest plugin: fixtures whose names begin with ``vhost_``, none of them automatic.

What they need is imported inside, so that a test session that uses none pays nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .blk import BlkFactory


@pytest.fixture
def vhost_blk() -> Iterator[BlkFactory]:
    """Serves disks and connects drivers to them; see ``vhost_user.testing``."""
    from contextlib import ExitStack
    from functools import partial

    from .blk import TestedDisk, blk

    with ExitStack() as stack:

        def connect(device: object, /, **options: object) -> TestedDisk:
            return stack.enter_context(partial(blk, device, **options)())  # type: ignore[arg-type]

        yield connect


@pytest.fixture
def vhost_socket() -> Iterator[Path]:
    """A path for a socket, short enough for one wherever the tests run."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory(prefix="vhost-") as directory:
        yield Path(directory, "socket")
