"""What Python sees of the core's threads: names, and that they can be traced."""

from pathlib import Path

import pytest

from .programs import Programs, assert_prints, finish

SERVE = """
class Disk(RamDisk):
    def on_start(self):
        seen["on_start"] = threading.current_thread().name
    def on_stop(self):
        seen["on_stop"] = threading.current_thread().name
    def read(self, offset, buf):
        seen["read"] = threading.current_thread().name

def serve():
    with vu.Backend(Disk(), socket=SOCKET), open_driver(SOCKET) as driver:
        driver.read(0, 512)
        driver.wait()
seen = {}
"""


def test_threads_have_names_in_callbacks_and_are_gone_after_them(
    vhost_socket: Path, programs: Programs
) -> None:
    process = programs.start(
        SERVE
        + """
serve()
print(sorted(seen.items()))
names = [thread.name for thread in threading.enumerate()]
print([name for name in names if name != "vhost-user-log"])
"""
    )
    code, out, err = finish(process)
    assert code == 0, err
    assert out.splitlines() == [
        "[('on_start', 'vhost-user'), ('on_stop', 'vhost-user'), ('read', 'vhost-user q0')]",
        "['MainThread']",
    ]


def test_records_of_a_callback_name_its_thread(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start(
        """
import logging
class Disk(RamDisk):
    def read(self, offset, buf):
        logging.warning("read")
logging.basicConfig(format="%(threadName)s: %(message)s", stream=sys.stdout)
with vu.Backend(Disk(), socket=SOCKET), open_driver(SOCKET) as driver:
    driver.read(0, 512)
    driver.wait()
"""
    )
    assert_prints(process, "vhost-user q0: read\n")


@pytest.mark.parametrize("kind", ["trace", "profile"])
def test_callbacks_are_traced_as_those_of_threads_that_python_starts(
    vhost_socket: Path, programs: Programs, kind: str
) -> None:
    """By what is set when a session starts, and no longer than its threads live."""
    process = programs.start(
        SERVE
        + f"""
def note(frame, event, argument):
    if event == "call":
        called.add(frame.f_code.co_name)
names = {{"on_start", "on_stop", "read"}}
called = set()
threading.set{kind}(note)
serve()
print(sorted(called & names), flush=True)
threading.set{kind}(None)
called.clear()
serve()
print(sorted(called & names), sorted(seen), flush=True)
"""
    )
    code, out, err = finish(process)
    assert code == 0, err
    every = "['on_start', 'on_stop', 'read']"
    assert out.splitlines() == [every, f"[] {every}"]


def test_a_thread_of_the_program_keeps_its_name(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start(
        SERVE
        + """
threading.current_thread().name = "mine"
device = Disk()
with vu.Backend(device, socket=SOCKET):
    device.resize(1 << 20)
print(threading.current_thread().name)
"""
    )
    assert_prints(process, "mine\n")
