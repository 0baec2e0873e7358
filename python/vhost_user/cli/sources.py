"""Whether the code of a device has changed."""

from collections.abc import Iterable
from pathlib import Path

Signature = dict[Path, tuple[int, int, int]]
"""Files, with what tells a changed one from what it was."""


class Sources:
    """The Python files in the folders that a device's code comes from.

    All of a folder count: a change may begin with a file that nobody loads yet.
    """

    def __init__(self) -> None:
        """Of no code yet."""
        self._files: dict[Path, Signature] = {}

    def add(self, files: Iterable[Path]) -> None:
        """More files that were loaded. What was known already is as it was at the last look."""
        for folder in {path.parent for path in files}:
            if folder not in self._files:
                self._files[folder] = _signature(folder)

    def have_changed(self) -> bool:
        """Whether anything has changed since the last look."""
        now = {folder: _signature(folder) for folder in self._files}
        before, self._files = self._files, now
        return now != before


def _signature(folder: Path) -> Signature:
    found: Signature = {}
    for path in folder.glob("*.py"):
        try:
            state = path.stat()
        except OSError:
            continue  # It was removed since.
        found[path] = (state.st_mtime_ns, state.st_size, state.st_ino)
    return found
