"""The files by which the kernel tells of itself."""

import os
from pathlib import Path


class Host:
    """A host whose files lie below ``root``, which is ``/`` but in tests."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def text(self, path: str) -> str | None:
        """What stands in a file, without the end of its line; None if it cannot be read."""
        try:
            return (self._root / path.lstrip("/")).read_text(errors="replace").strip("\0\n ")
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """The number in a file; None if there is none."""
        text = self.text(path)
        return int(text) if text is not None and text.isdecimal() else None

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return (self._root / path.lstrip("/")).exists()

    def may_use(self, path: str) -> bool:
        """Whether this process may read and write the file."""
        return os.access(self._root / path.lstrip("/"), os.R_OK | os.W_OK)

    def names(self, folder: str) -> list[str]:
        """The names in a folder, in order; none if there is no such folder."""
        try:
            return sorted(os.listdir(self._root / folder.lstrip("/")))
        except OSError:
            return []
