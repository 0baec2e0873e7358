"""A cpio archive in the ``newc`` format, which the Linux kernel unpacks as its initramfs.

Source: Linux kernel documentation, "initramfs buffer format".
"""

from __future__ import annotations

import stat

TRAILER = "TRAILER!!!"
ALIGNMENT = 4


class Cpio:
    """Collects files in memory; all belong to root and carry no time."""

    def __init__(self) -> None:
        self._records: list[bytes] = []
        self._directories: set[str] = set()

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self._parents(path)
        self._append(path, stat.S_IFREG | mode, data)

    def link(self, path: str, target: str) -> None:
        self._parents(path)
        self._append(path, stat.S_IFLNK | 0o777, target.encode())

    def directory(self, path: str) -> None:
        self._parents(path)
        if path not in self._directories:
            self._directories.add(path)
            self._append(path, stat.S_IFDIR | 0o755, b"")

    def character_device(self, path: str, major: int, minor: int) -> None:
        self._parents(path)
        self._append(path, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def finish(self) -> bytes:
        self._append(TRAILER, 0, b"")
        return b"".join(self._records)

    def _parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _append(
        self, path: str, mode: int, data: bytes, *, device: tuple[int, int] = (0, 0)
    ) -> None:
        name = path.encode() + b"\0"
        inode = 0 if path == TRAILER else len(self._records) + 1
        # inode, mode, uid, gid, nlink, mtime, size, device, special device, name size, checksum
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        self._records.append(_padded(header + name) + _padded(data))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
