"""What the core does where the interpreter says that it has no lock."""

import os
from pathlib import Path

import pytest

from .programs import ROOT, Programs, assert_prints

WITHOUT_LOCK = "import sys\nsys._is_gil_enabled = lambda: False\n"
"""What a free-threaded interpreter says, from 3.13 on: Python documentation, `sys`."""

SERVE_TWICE = """
import tracemalloc
class Disk(RamDisk):
    def on_batch(self, batch):
        made_since.append(tracemalloc.get_object_traceback(batch) is not None)
        tracemalloc.clear_traces()
        for request in batch:
            request.fail(OSError(5, "worn out"))
made_since = []
tracemalloc.start()
with vu.Backend(Disk(), socket=SOCKET), open_driver(SOCKET) as driver:
    for _ in range(3):
        driver.read(0, 512)
        driver.wait()
print(made_since)
"""
"""Says of each batch whether its object was made since the batch before."""


@pytest.mark.parametrize(
    ("says", "made_since"),
    [("", [True, False, False]), (WITHOUT_LOCK, [True, True, True])],
    ids=["with-lock", "without"],
)
def test_objects_are_used_again_only_where_their_count_tells_who_has_them(
    vhost_socket: Path, programs: Programs, tmp_path: Path, says: str, made_since: list[bool]
) -> None:
    (tmp_path / "sitecustomize.py").write_text(says)
    path = os.pathsep.join([str(tmp_path), str(ROOT / "tests")])
    process = programs.start(SERVE_TWICE, PYTHONPATH=path)
    assert_prints(process, f"{made_since}\n")
