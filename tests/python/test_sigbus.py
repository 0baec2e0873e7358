"""SIGBUS in a process that serves: what is no business of the package goes where it went before.

Each program serves a disk and has a driver connected, so that the package's handler is in place,
then runs into a SIGBUS of its own or is sent one.
"""

import signal

import pytest

from .programs import Programs, finish

SERVE = """
import faulthandler, mmap
backend = vu.Backend(RamDisk(), socket=SOCKET).start()
opened = open_driver(SOCKET)
driver = opened.__enter__()
driver.read(0, 512)
driver.wait()

def connect_again():
    opened.__exit__(None, None, None)
    with open_driver(SOCKET):
        pass

def cut_guest():
    os.ftruncate(driver.front.memory.fds[0], 0)
    driver.ring.kick()
    assert driver.front.channel.is_closed()

def fault():
    fd = os.memfd_create("own")
    os.ftruncate(fd, 4096)
    own = mmap.mmap(fd, 4096)
    os.ftruncate(fd, 0)
    return own[0]

def send():
    os.kill(os.getpid(), signal.SIGBUS)
"""

SOURCES = ["fault()", "send()"]


@pytest.fixture
def run(programs: Programs) -> "Run":
    return Run(programs)


class Run:
    """Runs a program to its end; gives exit code, stdout and stderr."""

    def __init__(self, programs: Programs) -> None:
        self.programs = programs

    def __call__(self, *parts: str) -> tuple[int, str, str]:
        return finish(self.programs.start("\n".join(parts)), 20)


@pytest.mark.parametrize("source", SOURCES)
def test_a_bus_error_of_the_program_itself_ends_it(run: Run, source: str) -> None:
    code, out, err = run(SERVE, source, "print('lived', flush=True)")
    assert (code, out) == (-signal.SIGBUS, ""), err


@pytest.mark.parametrize("source", SOURCES)
def test_a_bus_error_after_one_of_the_guest_ends_the_program(run: Run, source: str) -> None:
    code, out, err = run(SERVE, "cut_guest()", "print('lived', flush=True)", source)
    assert (code, out) == (-signal.SIGBUS, "lived\n"), err


ENABLE = "import faulthandler; faulthandler.enable()"


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((ENABLE, SERVE), id="before"),
        pytest.param((SERVE, ENABLE), id="after"),
        pytest.param((SERVE, ENABLE, "connect_again()"), id="after, then another front-end"),
        pytest.param((ENABLE, SERVE, "faulthandler.disable()", ENABLE), id="again"),
    ],
)
def test_the_fault_handler_of_python_reports_a_bus_error_and_the_program_ends(
    run: Run, parts: tuple[str, ...], source: str
) -> None:
    code, out, err = run(*parts, source, "print('lived', flush=True)")
    assert (code, out) == (-signal.SIGBUS, ""), err
    assert "Fatal Python error: Bus error" in err


def test_the_fault_handler_of_python_hears_nothing_of_a_guest(run: Run) -> None:
    code, out, err = run(ENABLE, SERVE, "cut_guest()", "backend.stop()", "print('lived')")
    assert (code, out) == (0, "lived\n"), err
    assert "Bus error" not in err


HANDLE = """
heard = threading.Event()
signal.signal(signal.SIGBUS, lambda number, frame: heard.set())
"""
AFTER = """
for _ in range(3):
    heard.clear()
    send()
    assert heard.wait(5)
cut_guest()
heard.clear()
send()
assert heard.wait(5)
backend.stop()
print('lived')
"""


def test_a_handler_of_the_program_gets_what_is_sent_and_not_what_a_guest_does(run: Run) -> None:
    code, out, err = run(HANDLE, SERVE, AFTER)
    assert (code, out) == (0, "lived\n"), err


def test_a_handler_that_comes_later_is_kept_when_the_next_front_end_connects(run: Run) -> None:
    program = SERVE.replace(
        "backend =",
        "first = vu.Backend(RamDisk(), socket=SOCKET + '2')\n"
        "first.start()\n"
        "with open_driver(SOCKET + '2'): pass\n" + HANDLE + "\nbackend =",
    )
    code, out, err = run(program, AFTER, "first.stop()")
    assert (code, out) == (0, "lived\n"), err


def test_a_signal_that_is_ignored_stays_ignored_and_a_guest_is_still_survived(run: Run) -> None:
    ignore = "signal.signal(signal.SIGBUS, signal.SIG_IGN)"
    code, out, err = run(ignore, SERVE, "send()", "cut_guest()", "backend.stop()", "print('lived')")
    assert (code, out) == (0, "lived\n"), err


def test_a_program_that_holds_all_signals_back_survives_its_guest(run: Run) -> None:
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    code, out, err = run(block, SERVE, "cut_guest()", "backend.stop()", "print('lived')")
    assert (code, out) == (0, "lived\n"), err
