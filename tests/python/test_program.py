"""Programs that serve: signals, exit, fork, service managers."""

import signal
import socket as sockets
from pathlib import Path

import pytest
import vhost_user as vu
from peer.front_end import FrontEnd
from peer.process import eventually

from .disks import RamDisk
from .driver import open_driver
from .programs import Programs, finish, line

XEN_MMAP = 1 << 17

SERVE = """
class Disk(RamDisk):
    def on_start(self):
        print("started", flush=True)
vu.serve(Disk(), socket=SOCKET)
print("served", flush=True)
"""

BUSY = """
import vhost_user.server
vhost_user.server.DRAIN = 3600.0  # who waits for that has failed
class Disk(RamDisk):
    def read(self, offset, buf):
        while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            time.sleep(0.001)  # until run() listens to signals
        print("reading", flush=True)
        while busy:
            pass
busy = True
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_serve_cleanly(
    vhost_socket: Path, programs: Programs, number: signal.Signals
) -> None:
    process = programs.start(SERVE)
    assert eventually(vhost_socket.exists)
    with open_driver(vhost_socket) as driver:
        assert line(process) == "started"
        driver.read(0, 512)
        driver.wait()
        process.send_signal(number)
        assert finish(process) == (0, "served\n", "")
    assert not vhost_socket.exists()


def test_a_signal_is_heard_at_once_while_callbacks_run(
    vhost_socket: Path, programs: Programs
) -> None:
    """The busy callback ends when the program begins to drain: so the signal came through."""
    process = programs.start(
        BUSY
        + """
backend = vu.Backend(Disk(), socket=SOCKET).start()
def watch():
    global busy
    while backend.state != "draining":
        time.sleep(0.001)
    busy = False
threading.Thread(target=watch, daemon=True).start()
backend.run()
print("ended", flush=True)
""",
    )
    assert eventually(vhost_socket.exists)
    with open_driver(vhost_socket) as driver:
        read = driver.read(0, 512)
        assert line(process) == "reading"
        process.send_signal(signal.SIGINT)
        assert finish(process)[:2] == (0, "ended\n")
        assert read.status == 0, "the request in flight was answered"


def test_a_second_signal_does_not_wait_for_callbacks(
    vhost_socket: Path, programs: Programs
) -> None:
    process = programs.start(
        BUSY
        + """
backend = vu.Backend(Disk(), socket=SOCKET).start()
def watch():
    while backend.state != "draining":
        time.sleep(0.001)
    print("draining", flush=True)
threading.Thread(target=watch, daemon=True).start()
backend.run()
print("ended", flush=True)
os._exit(9)
""",
    )
    assert eventually(vhost_socket.exists)
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        assert line(process) == "reading"
        process.send_signal(signal.SIGTERM)
        assert line(process) == "draining"
        process.send_signal(signal.SIGTERM)
        assert finish(process)[:2] == (9, "ended\n")


def test_a_stop_that_waits_for_requests_says_so(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start(
        """
class Disk(vu.BlockDevice):
    def on_batch(self, batch):
        kept.extend(request.defer() for request in batch)
        print("kept", flush=True)
kept = []
vu.serve(Disk(size=4096, read_only=True), socket=SOCKET)
"""
    )
    assert eventually(vhost_socket.exists)
    with open_driver(vhost_socket) as driver:
        driver.read(0, 512)
        assert line(process) == "kept"
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == (
            "stopping: 1 request in flight, at most 5 s; Ctrl-C again leaves at once\n"
        )
        process.send_signal(signal.SIGINT)
        code, _, err = finish(process)
    assert code == 0
    assert "queue 0: 1 request did not come back in time" in err


@pytest.mark.parametrize(
    ("end", "code"),
    [("", 0), ("sys.exit(7)", 7), ("raise LookupError", 1)],
    ids=["end", "exit", "raise"],
)
@pytest.mark.parametrize(
    "callback",
    [
        "pass",
        "time.sleep(3600)",
        "\n        while True: pass",
        "\n        while True: time.sleep(1e-4)",
    ],
    ids=["returns", "sleeps", "spins", "naps"],
)
def test_the_interpreter_exits_with_a_device_running(
    vhost_socket: Path,
    programs: Programs,
    callback: str,
    end: str,
    code: int,
) -> None:
    process = programs.start(
        f"""
entered = threading.Event()
class Disk(RamDisk):
    def read(self, offset, buf):
        entered.set()
        {callback}
backend = vu.Backend(Disk(), socket=SOCKET).start()
opened = open_driver(SOCKET)
driver = opened.__enter__()
driver.read(0, 512)
entered.wait()
{end}
""",
    )
    returned, _, err = finish(process)
    assert returned == code, err
    assert not vhost_socket.exists()


def test_ctrl_c_while_the_interpreter_exits_hurries_all_back_ends(
    vhost_socket: Path, programs: Programs
) -> None:
    """None of the callbacks returns; the signal comes when the first of the stops has begun."""
    process = programs.start(
        """
entered = threading.Semaphore(0)
class Disk(RamDisk):
    def read(self, offset, buf):
        entered.release()
        threading.Event().wait()
paths = [SOCKET, SOCKET + "1", SOCKET + "2"]
backends = [vu.Backend(Disk(), socket=path).start() for path in paths]
opened = [open_driver(path) for path in paths]
for driver in opened:
    driver.__enter__().read(0, 512)
for _ in paths:
    entered.acquire()
def interrupt():
    while all(backend.state != "draining" for backend in backends):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
"""
    )
    code, _, err = finish(process)
    assert code == 0, err
    assert "Traceback" not in err
    assert [path.name for path in vhost_socket.parent.glob(f"{vhost_socket.name}*")] == []


def test_a_fork_of_a_serving_process_is_told_so(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start(
        """
backend = vu.Backend(RamDisk(), socket=SOCKET).start()
child = os.fork()
if child == 0:
    try:
        backend.state
    except vu.VhostUserError as error:
        print(error, flush=True)
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
with open_driver(SOCKET) as driver:
    driver.read(0, 512)
    driver.wait()
backend.stop()
print(backend.state, flush=True)
""",
    )
    code, out, err = finish(process)
    assert code == 0, err
    told, exited, state = out.splitlines()
    assert "forked after the back-end had started" in told
    assert (exited, state) == ("5", "stopped")


def test_a_fork_may_serve_devices_of_its_own(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start(
        """
import logging
with vu.testing.blk(RamDisk()) as disk:
    child = os.fork()
    if child == 0:
        logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
        with vu.Backend(RamDisk(), socket=SOCKET), open_driver(SOCKET) as driver:
            driver.read(0, 512)
            driver.wait()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    disk.pread(512, 0)
""",
    )
    code, out, err = finish(process)
    assert code == 0, err
    assert f"{vhost_socket}: stopped" in out
    assert out.splitlines()[-1] == "0"


def test_a_socket_that_is_handed_down_is_served_and_readiness_told(
    vhost_socket: Path, programs: Programs
) -> None:
    """As systemd does it: the socket is descriptor 3, `LISTEN_PID` is the process."""
    with (
        sockets.socket(sockets.AF_UNIX) as listener,
        sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as manager,
    ):
        listener.bind(str(vhost_socket))
        listener.listen()
        manager.bind(str(vhost_socket) + ".notify")
        manager.settimeout(10)
        program = """
        os.dup2(int(os.environ["LISTENER"]), 3)
        os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
        vu.serve(RamDisk())
        """
        process = programs.start(
            program,
            pass_fds=[listener.fileno()],
            LISTENER=str(listener.fileno()),
            NOTIFY_SOCKET=f"{vhost_socket}.notify",
        )
        assert manager.recv(100) == b"READY=1"
        with open_driver(vhost_socket) as driver:
            driver.read(0, 512)
            driver.wait()
        process.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert finish(process)[0] == 0


def test_serve_takes_options_for_xen(vhost_socket: Path, programs: Programs) -> None:
    process = programs.start("vu.serve(RamDisk(), socket=SOCKET, xen=vu.XenOptions())")
    assert eventually(vhost_socket.exists)
    with FrontEnd.connect(str(vhost_socket)).start() as peer:
        assert peer.protocol_offered & XEN_MMAP
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (0, "", "")


def test_a_stuck_callback_stops_neither_another_device_nor_the_stop(programs: Programs) -> None:
    """In a process of its own, since the stuck thread stays."""
    process = programs.start(
        """
class Stuck(RamDisk):
    def read(self, offset, buf):
        entered.set()
        time.sleep(3600)
entered = threading.Event()
stuck = vu.Backend(Stuck(), socket=SOCKET).start()
with vu.testing.blk(RamDisk()) as other, open_driver(SOCKET) as driver:
    driver.read(0, 512)
    entered.wait()
    other.pwrite(b"x" * 512, 0)
    assert other.pread(512, 0) == b"x" * 512
    begun = time.monotonic()
    stuck.stop(drain=0.2)
    print(stuck.state, time.monotonic() - begun < 3, flush=True)
    assert other.pread(512, 0) == b"x" * 512
os._exit(0)
""",
    )
    assert line(process) == "stopped True"
    assert finish(process)[0] == 0


def test_with_thread_safe_a_stuck_queue_leaves_the_others_alone(programs: Programs) -> None:
    process = programs.start(
        """
from peer.front_end import FrontEnd
class Disk(RamDisk):
    thread_safe = True
    def read(self, offset, buf):
        if offset:
            entered.set()
            time.sleep(3600)
entered = threading.Event()
vu.Backend(Disk(num_queues=2), socket=SOCKET).start()
front = FrontEnd.connect(SOCKET).start(queues=2)
first, second = front.blk(0), front.blk(1)
first.submit(first.prepare(0, 1, room=512))
first.ring.kick()
entered.wait()
print(second.read(0, 512).status, flush=True)
os._exit(0)
""",
    )
    assert line(process) == "0"
    assert finish(process)[0] == 0


def test_the_plugin_s_backends_do_not_keep_signals(vhost_blk: vu.testing.BlkFactory) -> None:
    """Only `run` takes the signals, and gives them back."""
    before = signal.getsignal(signal.SIGINT)
    vhost_blk(RamDisk())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_thousand_signals_a_second_disturb_no_request(programs: Programs) -> None:
    """Each system call of each thread may be interrupted; none is short or fails for it."""
    process = programs.start(
        """
signal.signal(signal.SIGALRM, lambda *_: None)
image = SOCKET + ".image"
with open(image, "wb") as file:
    file.truncate(8 << 20)
with vu.testing.blk(vu.FileDisk(image)) as disk, vu.testing.blk(RamDisk(8 << 20)) as ram:
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for driver in disk, ram:
        driver.prepare_load()
        report = driver.run_load(ops=5000, verify="all")
        print(report.errors, report.mismatches, report.verified >= 5000, flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
""",
    )
    assert finish(process, 60)[:2] == (0, "0 0 True\n0 0 True\n")


LEAVES = """
import linecache
hold, go_on = os.pipe(), os.pipe()
def wait(read=os.read, write=os.write, hold=hold[1], go_on=go_on[0]):
    write(hold, b"x")
    read(go_on, 1)
class Waits:
    def __del__(self, wait=wait):
        wait()
class Leaves:
    def __del__(self, write=os.write, sleep=time.sleep, go_on=go_on[1]):
        write(go_on, b"x")
        sleep(1)  # the other thread asks for the interpreter meanwhile
class Disk(RamDisk):
    def read(self, offset, buf):
        if WAY == "a stack":
            time.sleep(60)
        own, self.buf = Waits(), buf
        raise ValueError
def read_slowly(*arguments, wait=wait):
    wait()
    return []
WAY = os.environ["WAY"]
if WAY == "a stack":
    linecache.getlines = linecache.updatecache = linecache.checkcache = read_slowly
module = type(sys)("late")
module.leaves = Leaves()
sys.modules["late"] = module
del module
backend = vu.Backend(Disk(), socket=SOCKET).start()
opened = open_driver(SOCKET)
driver = opened.__enter__()
driver.read(0, 512)
os.read(hold[0], 1)
"""


@pytest.mark.parametrize("way", ["an exception's variables", "a stack"])
def test_the_interpreter_may_end_while_a_report_runs_python_code(
    programs: Programs, way: str
) -> None:
    """What is emptied or read for a report runs code of its own."""
    code, _, err = finish(programs.start(LEAVES, WAY=way), 40)
    assert code == 0, err
