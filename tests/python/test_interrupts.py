"""Ctrl-C ends every call that waits, and what it leaves is of use or clearly closed.

The calls here would go on for an hour: a program that does not hear the signal fails its test.
"""

from pathlib import Path

import pytest

from .programs import Programs, assert_prints, finish

PRELUDE = """
import contextlib, socket
HOUR = 3600.0

class Slow(vu.BlockDevice):
    def __init__(self):
        super().__init__(size=1 << 20)
        self.go_on = threading.Event()
        self.seen = []
    def read(self, offset, buf):
        self.seen.append(offset)
        self.go_on.wait()
        buf[:] = bytes([(1 + offset // 512) % 256]) * len(buf)
    def write(self, offset, buf):
        self.go_on.wait()
    def flush(self):
        self.go_on.wait()
    def discard(self, offset, length):
        self.go_on.wait()
    def write_zeroes(self, offset, length, unmap):
        self.go_on.wait()

device = Slow()
backend = vu.Backend(device, socket=SOCKET, drain=HOUR).start()

def connect():
    return vu.VirtioBlkDriver.connect(SOCKET, timeout=HOUR)

silent = socket.socket(socket.AF_UNIX)
silent.bind(SOCKET + "-silent")
silent.listen()

def read_elsewhere():
    def read():
        with contextlib.suppress(OSError):
            driver.pread(512, 0)
    threading.Thread(target=read, daemon=True).start()

def codes(frame):
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back

def signal_in(call):
    # While another thread has the interpreter, a main thread inside of `call` is in the core.
    def send():
        main = threading.main_thread().ident
        while call.__code__ not in codes(sys._current_frames()[main]):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=send, daemon=True).start()

def interrupted(call):
    signal_in(call)
    try:
        print("returned", call(), flush=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""

CALLS = {
    "pread": "connect().pread(512, 0)",
    "pwrite": "connect().pwrite(bytes(512), 0)",
    "flush": "connect().flush()",
    "discard": "connect().discard(0, 512)",
    "write_zeroes": "connect().write_zeroes(0, 512)",
    "prepare_load": "connect().prepare_load()",
    "run_load": "connect().run_load(seconds=HOUR, verify='none')",
    "run_load, polling": "connect().run_load(seconds=HOUR, verify='none', polling=True)",
    "run_load of a fast disk": "fast().run_load(seconds=HOUR, verify='none')",
    "wait_config_change": "connect().wait_config_change(HOUR)",
    "Frontend.connect": "vu.Frontend.connect(SOCKET + '-silent', timeout=HOUR)",
    "VirtioBlkDriver.connect": "vu.VirtioBlkDriver.connect(SOCKET + '-silent', timeout=HOUR)",
    "a connect to nobody": "vu.Frontend.connect(SOCKET + '-none', timeout=HOUR)",
    "wait_running": "backend.wait_running(HOUR)",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_call_that_waits_hears_ctrl_c(vhost_socket: Path, programs: Programs, call: str) -> None:
    what, dot, rest = call.partition(").")
    made = dot and what in ("connect(", "fast(")
    process = programs.start(
        PRELUDE
        + f"""
def fast():
    device.go_on.set()
    return connect()
made = {what + ")" if made else None}
interrupted(lambda: {"made." + rest if made else call})
os._exit(0)
"""
    )
    assert_prints(process, "interrupted\n")


def test_a_driver_is_used_on_after_ctrl_c(vhost_socket: Path, programs: Programs) -> None:
    """What was asked for first is waited for, and its answer taken for no other's."""
    process = programs.start(
        PRELUDE
        + """
driver = connect()
interrupted(lambda: driver.pread(512, 0))
threading.Timer(0.01, device.go_on.set).start()
print(driver.pread(1024, 512) == bytes([2]) * 1024, device.seen, flush=True)
driver.close()
backend.stop()
print(backend.state, flush=True)
"""
    )
    assert_prints(process, "interrupted\nTrue [0, 512]\nstopped\n")


def test_a_load_that_was_interrupted_is_run_again(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start(
        PRELUDE
        + """
driver = connect()
interrupted(lambda: driver.run_load(seconds=HOUR, verify="none"))
device.go_on.set()
report = driver.run_load(ops=100, verify="none")
print(report.ops >= 100, report.errors, flush=True)
driver.close()
backend.stop()
"""
    )
    assert_prints(process, "interrupted\nTrue 0\n")


def test_a_message_that_was_given_up_leaves_the_connection_in_step(
    vhost_socket: Path, programs: Programs
) -> None:
    process = programs.start(
        PRELUDE
        + """
class Reads(vu.Device):
    device_id = 4
    def on_queue(self, queue):
        pass
    def read_config(self, offset, length):
        go_on.wait()
        return bytes([1 + offset]) * length
go_on = threading.Event()
reads = vu.Backend(Reads(config=bytes(8)), socket=SOCKET + "-reads").start()
front = vu.Frontend.connect(SOCKET + "-reads", timeout=HOUR)
interrupted(lambda: front.config(0, 4))
go_on.set()
print(bytes(front.config(1, 2)), flush=True)
os._exit(0)
"""
    )
    assert_prints(process, "interrupted\nb'\\x02\\x02'\n")


def test_a_handler_that_returns_lets_the_call_go_on(vhost_socket: Path, programs: Programs) -> None:
    """It may even be what lets the device answer; but it cannot use the connection itself."""
    process = programs.start(
        PRELUDE
        + """
def handle(number, frame):
    try:
        driver.pread(512, 0)
    except vu.VhostUserError as error:
        print(error, flush=True)
    device.go_on.set()
signal.signal(signal.SIGINT, handle)
driver = connect()
def read():
    return driver.pread(512, 512)
signal_in(read)
print(read() == bytes([2]) * 512, flush=True)
driver.close()
backend.stop()
"""
    )
    code, out, err = finish(process)
    assert code == 0, err
    assert out == (
        "the connection is used by the very call that this signal handler interrupts: raise an "
        "exception to end that\nTrue\n"
    )


def test_who_waits_for_a_thread_that_uses_the_driver_hears_ctrl_c(
    vhost_socket: Path, programs: Programs
) -> None:
    process = programs.start(
        PRELUDE
        + """
driver = connect()
read_elsewhere()
while not device.seen:
    time.sleep(0.001)
interrupted(lambda: driver.pread(512, 512))
interrupted(lambda: driver.close())
os._exit(0)
"""
    )
    assert_prints(process, "interrupted\ninterrupted\n")


def test_a_stop_hears_ctrl_c_and_goes_on(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start(
        PRELUDE
        + """
driver = connect()
read_elsewhere()
while not device.seen:
    time.sleep(0.001)
interrupted(lambda: backend.stop(drain=HOUR))
print(backend.state, flush=True)
device.go_on.set()
while backend.state != "stopped":
    time.sleep(0.001)
backend.stop()
print("stopped", flush=True)
"""
    )
    assert_prints(process, "interrupted\ndraining\nstopped\n")


def test_a_program_whose_stop_was_interrupted_ends(vhost_socket: Path, programs: Programs) -> None:
    """The callback does not return, and nobody waits for it any more."""
    process = programs.start(
        PRELUDE
        + """
driver = connect()
read_elsewhere()
while not device.seen:
    time.sleep(0.001)
interrupted(lambda: backend.stop(drain=HOUR))
"""
    )
    assert_prints(process, "interrupted\n")
