"""Every test runs in a directory of its own, so that sockets have short, relative paths."""

from pathlib import Path

import pytest

RAM_DISK = '''
import vhost_user as vu


class Ram(vu.BlockDevice):
    """A disk in memory."""

    def __init__(self, size: int, *, serial: str = "") -> None:
        super().__init__(size=size, serial=serial)
        self.mem = bytearray(size)

    def read(self, offset, buf):
        buf[:] = self.mem[offset : offset + len(buf)]

    def write(self, offset, buf):
        self.mem[offset : offset + len(buf)] = buf
'''


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ram(directory: Path) -> str:
    """``ram.py`` with the class ``Ram``."""
    (directory / "ram.py").write_text(RAM_DISK)
    return "ram.py"


@pytest.fixture
def image(directory: Path) -> str:
    """``disk.img`` of 1 MiB."""
    (directory / "disk.img").write_bytes(bytes(1 << 20))
    return "disk.img"
