"""Serving a device: ``Backend`` and ``serve``."""

from __future__ import annotations

import atexit
import operator
import os
import sys
import threading  # noqa: F401 - see below
import time
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, final

from . import _core, arguments, systemd
from .devices.base import Device
from .devices.block import BlockDevice
from .errors import VhostUserError
from .limits import (
    DAY,
    MAX_BATCH,
    MAX_CPU,
    MAX_GROUP,
    MAX_MODE,
    MAX_POLL_US,
    MAX_SIZE,
    MAX_THREADS,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from ._core import Metrics
    from .control import Control
    from .signals import StopSignals
    from .stats import QueueStats
    from .xen import XenOptions

# The thread that imports `threading` first passes for the main thread, and the interpreter waits
# for it at its end. That must not be the one which hands over log records.

Path: TypeAlias = str | os.PathLike[str]
State: TypeAlias = Literal[
    "new", "listening", "negotiating", "running", "paused", "draining", "stopped"
]

COPY_BUDGET = 64 << 20
"""Bytes of private copies that a queue may have at a time."""

DRAIN = 5.0
"""Seconds that requests in flight have when a back-end stops."""

RING_DRAIN = 30.0
"""Seconds that requests in flight have when the front-end stops a queue."""

SOON = 0.2
"""Seconds in which most stops are over, so that nothing need be said of them."""

FLUSH = 2.0
"""Seconds that the readers of the log have when a back-end has stopped."""

HURRIED_FLUSH = 0.1
"""The same after a second signal."""

EXIT_LIMIT = 3.0
"""Seconds for all back-ends that still run when the interpreter exits."""

ON_ERROR: tuple[Literal["report", "raise", "stop"], ...] = ("report", "raise", "stop")
"""What an exception in a callback may do besides failing its request."""

CALLBACKS = (
    *("read", "write", "flush", "discard", "write_zeroes", "on_batch", "on_queue"),
    *("on_start", "on_stop", "on_reset", "on_disconnect", "on_buffers", "on_queue_stop"),
    *("read_config", "write_config"),
)
"""Methods of devices that the core calls. All but ``read_config`` return None."""

DEVICE_ID = "the number of a device type, as 4 for an entropy device"

NETWORK = 1
"""VIRTIO 1.3, "Device Types": a network card."""

PAIR = 2
"""VIRTIO 1.3, "Network Device", "Virtqueues": one queue to receive and one to send."""

LAZY_FUNCTIONS = {
    0x20: "a generator function",
    0x80: "a coroutine function",
    0x100: "a coroutine function",
    0x200: "an asynchronous generator function",
}
"""By the code flags of ``inspect``, whose import takes longer than all of this package's."""

_running: set[_core.Backend] = set()
_hooks_set = False


@final
class Backend:
    """Serves one device to one front-end at a time.

    One that has started serves until it is stopped, though nobody keeps the object: then it gives a
    ``ResourceWarning``. A context manager that starts and stops it; or ``run()``, which does it
    all::

        with vu.Backend(disk, socket="disk.sock") as backend:
            backend.wait_running()
            ...
    """

    def __init__(
        self,
        device: Device,
        *,
        socket: Path | None = None,
        fd: int | None = None,
        connect: bool = False,
        keep_listening: bool = True,
        mode: int = 0o600,
        group: str | int | None = None,
        threads: int | Literal["per-queue"] = "per-queue",
        batch: int = 64,
        poll_us: int = 32,
        cpus: Sequence[int] | None = None,
        copy_budget: int = COPY_BUDGET,
        drain: float = RING_DRAIN,
        any_memory_file: bool = False,
        on_error: Literal["report", "raise", "stop"] = "report",
        xen: XenOptions | None = None,
        metrics: str | None = None,
        control: Path | None = None,
    ) -> None:
        """Nothing happens before ``start``.

        ``socket``: the path to listen at, or with ``connect`` to call until somebody answers. It
        is used exactly as given. ``mode``, ``group``: who may use it; the mode is octal, as 0o660,
        the group a name or a number.
        ``fd``: a socket instead, listening or connected; it is duplicated. With neither, the
        socket that a service manager hands down (``LISTEN_FDS``).
        ``keep_listening``: take the next front-end when one has left; else stop.
        ``threads``: one for each queue, or this many for all, 1 to 65535.
        ``batch``: most requests handled at once, 1 to 32768. ``poll_us``: longest busy polling, in
        microseconds up to a million, before a thread sleeps; a thread whose waits are longer does
        not poll, so that below some ten thousand requests a second nothing is spent. 0: never.
        ``cpus``: processors to pin threads to, in turns.
        ``copy_budget``: most bytes that each queue may have at a time of the copies in which Python
        sees data that does not lie in one piece. A request over it fails, with a log record; a
        batch is handed over in parts that fit. All queues of the process together may have what
        ``set_total_copy_budget`` says.
        ``drain``: seconds that requests have to come back when the front-end stops a queue, resets
        the device or takes memory away; those that are late fail with an I/O error.
        ``any_memory_file``: take guest memory in files on FUSE and network file systems too. One
        whose server stops to answer hangs whatever touches the memory, so such files are refused
        by default; memory files, hugetlbfs and file systems of this host are always taken.
        ``on_error``: what an exception in a callback does besides failing its request: it is
        logged ("report"), also kept for a front-end in this process to raise ("raise"), or the
        back-end stops and ``run()`` raises it ("stop"). With "raise" the reasons of requests that
        fail without an exception are kept too.
        ``xen``: serve front-ends on Xen too. What a guest grants reaches Python by a copy, unless
        ``XenOptions(raw_views=True)`` asks for views of the granted pages themselves.
        ``metrics``: measure what ``metrics()`` tells ("on"), and give it away in Prometheus's text
        format too: by HTTP at a Unix socket that its owner alone may use ("unix:PATH") or a port
        that this host alone reaches ("127.0.0.1:9100", "[::1]:9100"; port 0 is one that the system
        chooses), or in a file for the textfile collector, replaced every 10 seconds ("file:PATH").
        ``control``: the path of a socket at which ``vhost-user ctl`` gives orders and ``vhost-user
        top`` looks; its owner alone may use it. What ``metrics()`` tells is measured then too.

        Raises ``TypeError`` for a device that can do nothing or options of a wrong type,
        ``ValueError`` for options out of range.
        """
        _check_device(device)
        if socket is not None and fd is not None:
            raise ValueError("socket and fd exclude each other")
        self._socket = None if socket is None else _checked_path("socket", socket)
        self._fd = arguments.descriptor("fd", fd)
        self._connect = arguments.flag("connect", connect)
        self._keep_listening = arguments.flag("keep_listening", keep_listening)
        if connect and socket is None:
            raise ValueError("connect needs a socket path")
        self.device = device
        self._mode = _checked_mode(mode)
        self._group = _checked_group(group)
        self._threads = _checked_threads(threads)
        self._batch = arguments.number_in(
            "batch", batch, "a number of requests, as 64", 1, MAX_BATCH
        )
        self._poll_us = arguments.number_in(
            "poll_us", poll_us, "microseconds, as 32", 0, MAX_POLL_US
        )
        self._cpus = _checked_cpus(cpus)
        self._drain = _checked_drain(drain)
        self._copy_budget = arguments.number_in(
            "copy_budget", copy_budget, "a number of bytes", 0, MAX_SIZE
        )
        self._any_memory_file = arguments.flag("any_memory_file", any_memory_file)
        self._on_error = arguments.choice("on_error", on_error, ON_ERROR)
        self._xen = _checked_options(xen)
        self._metrics = _checked_metrics(metrics)
        self._control_path = None if control is None else _checked_path("control", control)
        self._control: Control | None = None
        self._is_held = False
        self._core: _core.Backend | None = None

    @property
    def state(self) -> State:
        """Where it stands: new -> listening -> negotiating -> running <-> paused -> draining ->
        stopped.
        """
        return "new" if self._core is None else self._core.state

    def start(self) -> Self:
        """Opens the socket and serves from now on, on threads of its own.

        Raises ``OSError`` if the socket cannot be made, ``VhostUserError`` if it was started
        before or the device is served already.
        """
        if self._core is not None:
            raise VhostUserError("a back-end starts once: make another")
        other = self.device.served_by
        if other is not None and other.state != "stopped":
            raise VhostUserError("the device is served by another back-end")
        _set_hooks()
        core = self._make()
        self._core = self.device.served_by = core
        _running.add(core)
        if self._control_path is not None:
            self._open_control(self._control_path)
        systemd.notify("READY=1")
        return self

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, or until it ends by itself.

        At a signal requests in flight have 5 seconds, of which a log record tells; a second signal
        ends that. Raises what a callback raised if that ended it. Outside the main thread, where
        no signal arrives, use ``stop`` from another thread.
        """
        from .signals import Hurried, StopSignals

        with StopSignals() as signals:
            if self._core is None:
                self.start()
            core = self._required()
            impatient = False
            if signals.wait(core.stopped_fd()):
                systemd.notify("STOPPING=1")
                core.request_stop()
                impatient = _end_is_hurried(core, signals)
            try:
                with signals.raised():
                    self._end(*((0.0, HURRIED_FLUSH) if impatient else (DRAIN, FLUSH)))
            except Hurried:
                _running.discard(core)  # Nor is it waited for when the interpreter exits.
        failure = core.take_failure() if self._on_error != "raise" else None
        if failure is not None and not isinstance(failure, KeyboardInterrupt):
            raise failure

    def stop(self, *, drain: float = DRAIN) -> None:
        """Stops: requests in flight have ``drain`` seconds, then the memory is unmapped.

        Returns when it is done; called from a callback, it only asks. What did not finish in time
        is logged. Stopping twice, or what never started, does nothing. What the handler of a
        signal raises, as that of Ctrl-C does, ends the waiting; the back-end ends without it.
        """
        self._end(arguments.seconds("drain", drain), FLUSH)

    def _open_control(self, path: str) -> None:
        from .control import Control  # Not at the top: few have orders to give.

        try:
            self._control = Control(path, self, patient=self._is_held)
        except BaseException:
            self._end(0.0, FLUSH)
            raise

    def request_stop(self, *, drain: float = DRAIN) -> None:
        """Asks the back-end to end, and does not wait: requests in flight have ``drain`` seconds.
        ``run()`` returns when it has. Raises ``VhostUserError`` if it has not started.
        """
        self._required().request_stop(drain)

    def _end(self, drain: float, flush: float) -> None:
        core = self._core
        if core is None:
            return
        if self._control is not None:
            self._control.close()
            self._control = None
        core.stop(drain, flush=flush)
        if core.state == "stopped":
            _running.discard(core)
            if self.device.served_by is core:
                self.device.served_by = None

    def wait_running(self, timeout: float | None = None) -> bool:
        """Waits until a queue is served; false if that does not come in ``timeout`` seconds, or
        never will.
        """
        limit = None if timeout is None else arguments.seconds("timeout", timeout)
        return self._required().wait_running(limit)

    def stats(self) -> tuple[QueueStats, ...]:
        """What each queue has done since the back-end started, by the vring's number.

        The numbers go on from one front-end to the next, and stay when the back-end has stopped.
        Asking costs the queues nothing; the numbers of one queue may be a batch apart. Raises
        ``VhostUserError`` if it has not started.
        """
        from .stats import QueueStats  # Not at the top: few ask.

        return tuple(QueueStats(*numbers) for numbers in self._required().stats())

    def pause(self) -> bool:
        """Takes no more requests from the guest, which waits, until ``resume``, whichever front-end
        is there. Those in flight go on.

        When it returns True nothing more is taken. False: it is done once the front-end's message
        was carried out that the back-end is busy with; or the call came from a callback, which is
        not waited for. Raises ``VhostUserError`` if it has not started.
        """
        return self._required().pause()

    def resume(self) -> bool:
        """Takes requests again. Returns and raises as ``pause`` does."""
        return self._required().resume()

    @property
    def is_paused(self) -> bool:
        """Whether ``pause`` was called and ``resume`` was not since."""
        return self._core is not None and self._core.is_paused

    def metrics(self) -> Metrics:
        """What was measured since the back-end started, all front-ends together. Asking costs the
        queues nothing.

        Raises ``VhostUserError`` if it has not started, or does not measure anything: that is asked
        for with ``metrics=``.
        """
        metrics = self._required().metrics()
        if metrics is None:
            raise VhostUserError('nothing is measured: make it with Backend(..., metrics="on")')
        return metrics

    @property
    def metrics_address(self) -> str | None:
        """Where metrics are given away, as ``metrics=`` says it, with the port that the system has
        chosen in place of 0. None if they are not, or not any more.
        """
        return None if self._core is None else self._core.metrics_address()

    def take_failure(self) -> BaseException | None:
        """Takes what the last request to fail has left with ``on_error="raise"``: the exception of
        its callback, or one that says why it failed. None if there is nothing.
        """
        return self._required().take_failure()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.stop()

    def __del__(self) -> None:
        # Not there if the constructor has raised.
        core: _core.Backend | None = getattr(self, "_core", None)
        if core is not None and core in _running and core.state != "stopped":
            import warnings

            warnings.warn(
                f"{self!r} was dropped without stop(), and serves on",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )

    def __repr__(self) -> str:
        where = self._socket or (f"fd {self._fd}" if self._fd is not None else "LISTEN_FDS")
        return f"<Backend {type(self.device).__name__} at {where}: {self.state}>"

    def _required(self) -> _core.Backend:
        if self._core is None:
            raise VhostUserError("the back-end has not started")
        return self._core

    def _exposed(self) -> tuple[str, bool] | None:
        """Where metrics are given away, and whether a former process may still do so there."""
        if self._metrics is None or self._metrics == "on":
            return None
        return self._metrics, self._is_held

    def _make(self) -> _core.Backend:
        fd = self._fd
        if self._socket is None and fd is None:
            fd = systemd.listen_fd()
            if fd is None:
                raise ValueError("a back-end needs socket or fd")
        device, xen = self.device, self._xen
        label = _printable(self._socket) if self._socket else f"fd {fd}"
        if xen is not None:
            from .xen import tell_missing_devices

            tell_missing_devices(label)
        return _core.Backend(
            device,
            device.served_as,
            overrides=_overrides(device),
            listen=None if self._connect else self._socket,
            dial=self._socket if self._connect else None,
            fd=fd,
            mode=self._mode,
            group=group_id(self._group),
            keep_listening=self._keep_listening,
            threads=self._threads,
            batch=self._batch,
            poll_us=self._poll_us,
            cpus=self._cpus,
            drain=self._drain,
            copy_budget=self._copy_budget,
            any_memory_file=self._any_memory_file,
            on_error=self._on_error,
            label=label,
            measured=self._metrics is not None or self._control_path is not None,
            expose=self._exposed(),
            xen=None if xen is None else (xen.design, xen.copy_below, xen.domain, xen.raw_views),
            guest=None if xen is None else xen._guest,  # noqa: SLF001 - set by a test
        )


def serve(
    device: Device,
    *,
    socket: Path | None = None,
    fd: int | None = None,
    xen: XenOptions | None = None,
    metrics: str | None = None,
    control: Path | None = None,
) -> None:
    """Serves ``device`` until SIGTERM or SIGINT: the whole of a program.

    ``socket``, ``fd``, ``xen``, ``metrics``, ``control``: as ``Backend`` takes them, which has more
    options and ``run()``.
    Shortens the interpreter's switch interval, so that no request waits long for a thread of the
    program's own; a ``Backend`` leaves it alone.
    """
    sys.setswitchinterval(0.0005)
    Backend(device, socket=socket, fd=fd, xen=xen, metrics=metrics, control=control).run()


def set_total_copy_budget(size: int) -> int:
    """Sets how many bytes all queues of this process may have together of the copies in which
    Python sees data that does not lie in one piece; returns the former number.

    It is 1 GiB at first. A request over it fails, with a log record; copies that are there stay.
    What a single queue may have says ``Backend(copy_budget=...)``. Raises ``ValueError`` for a
    number that is no number of bytes.
    """
    size = arguments.number_in("size", size, "a number of bytes, as 1 << 30", 0, MAX_SIZE)
    return _core.set_total_copy_budget(size)


def _check_device(device: Device) -> None:
    """Says what is missing where the mistake was made, not at the first request."""
    kind = type(device)
    if isinstance(device, type):
        raise TypeError(f"a device is needed, not its class: write {device.__name__}(...)")
    if not isinstance(device, Device):
        raise TypeError(f"{kind.__name__} is not a vhost_user.Device")
    if not hasattr(device, "queue_size"):
        raise TypeError(f"{kind.__name__}.__init__ must call super().__init__()")
    if not hasattr(device, "device_id"):
        raise TypeError(
            f"{kind.__name__} has no device_id: the number of its type, as 4 for an entropy device"
        )
    arguments.number(f"{kind.__name__}.device_id", device.device_id, DEVICE_ID)
    missing = _missing(device)
    if missing is not None:
        raise TypeError(f"{kind.__name__} has no {missing}")
    _check_pairs(device)
    for name in CALLBACKS:
        what = _never_runs(getattr(device, name, None))
        if what is not None:
            raise TypeError(
                f"{kind.__name__}.{name} is {what}, which a call does not run: make it a plain "
                f"method that returns when it is done{_advice_for_slow(device, name)}"
            )
    _check_config(device)
    _tell_misspelt(device)


def _advice_for_slow(device: Device, name: str) -> str:
    """What to do in place of a coroutine."""
    if device.served_as == "block" and name in ("read", "write", "on_batch"):
        return (
            ". What takes long goes into on_batch: defer() each request there, and answer it "
            "from a thread or an event loop of your own, by complete() or fail()"
        )
    if name == "on_queue":
        return (
            ". What takes long is deferred: defer() each request, and complete() it from a thread "
            "or an event loop of your own"
        )
    return ""


def _tell_misspelt(device: Device) -> None:
    """Logs which methods look as if they were to be called, and are not."""
    from .misspelt import misspelt  # Not at the top: only a device that is served is looked at.

    for name, callback in misspelt(type(device)):
        import logging  # Not at the top: programs that log nothing need not wait for it.

        logging.getLogger("vhost_user.device").warning(
            "%s.%s is never called: is it to be %s?", type(device).__name__, name, callback
        )


def _check_pairs(device: Device) -> None:
    if device.device_id == NETWORK and device.num_queues < PAIR:
        raise ValueError(
            f"{type(device).__name__} is a network device, which has pairs of queues, to receive "
            f"and to send: num_queues is {PAIR} or more, not {device.num_queues}"
        )


def _check_config(device: Device) -> None:
    """Says which callback for the configuration space would never run."""
    kind = type(device)
    has = [n for n in ("read_config", "write_config") if getattr(kind, n) is not getattr(Device, n)]
    if has and device.served_as != "queue":
        raise TypeError(
            f"{kind.__name__}.{has[0]} would never be called: a disk's configuration space is its "
            "own"
        )
    if "read_config" in has and not device.config:
        raise ValueError(
            f"{kind.__name__}.read_config would never be called: the device has no configuration "
            "space. Say how long it is, as in super().__init__(config=bytes(136))"
        )


def _checked_options(xen: XenOptions | None) -> XenOptions | None:
    if xen is None:
        return None
    from .xen import checked  # Not at the top: it takes longer to load than all the rest.

    return checked(xen)


def _checked_metrics(metrics: str | None) -> str | None:
    if metrics is None or metrics == "on":
        return metrics
    if not isinstance(metrics, str):
        raise TypeError(f"metrics is 'on' or an address, as 'unix:PATH', not {metrics!r}")
    try:
        return metrics_address(metrics)
    except ValueError as error:
        raise ValueError(f"metrics is 'on' or an address, not {metrics!r}: {error}") from None


def _checked_mode(mode: int) -> int:
    mode = arguments.number("mode", mode, "permission bits, as 0o660")
    if not 0 <= mode <= MAX_MODE:
        digits = str(mode)
        octal = len(digits) == len("660") and not set(digits) & set("89")
        hint = f": write 0o{digits}, as octal numbers are written" if octal else ""
        raise ValueError(f"mode is permission bits, 0 to 0o777, not {mode} ({mode:#o}){hint}")
    return mode


def _checked_path(name: str, path: Path) -> str:
    found = arguments.path(name, path)
    return found if isinstance(found, str) else os.fsdecode(found)


def _checked_drain(drain: float) -> float:
    if not hasattr(drain, "__float__"):
        raise TypeError(f"drain is a number of seconds, as 5.0, not {drain!r}")
    if not 0 <= drain <= DAY:
        raise ValueError(f"drain is 0 to {DAY:.0f} seconds, not {drain}")
    return float(drain)


def _checked_threads(threads: Any) -> int:
    """The number of threads; 0: one for each queue."""
    if threads == "per-queue":
        return 0
    number = arguments.number("threads", threads, "a number, as 2, or 'per-queue'")
    if not 1 <= number <= MAX_THREADS:
        raise ValueError(f"threads is 1 to {MAX_THREADS} or 'per-queue', not {number}")
    return number


def _checked_cpus(cpus: Sequence[int] | None) -> list[int]:
    if cpus is None:
        return []
    try:
        numbers = [operator.index(cpu) for cpu in cpus]
    except TypeError:
        what = "a list of processor numbers, as [0, 1]"
        raise TypeError(f"cpus is {what}, not {cpus!r}") from None
    for number in numbers:
        if not 0 <= number <= MAX_CPU:
            raise ValueError(f"cpus has processor numbers, 0 to {MAX_CPU}, not {number}")
    return numbers


def _checked_group(group: str | int | None) -> str | int | None:
    """The group's name or its number."""
    if group is None or (isinstance(group, str) and not group.isdecimal()):
        return group
    if isinstance(group, str):
        group = int(group)
    what = "the name of a group or its number, as 'kvm' or 1000"
    return arguments.number_in("group", group, what, 0, MAX_GROUP)


def _end_is_hurried(core: _core.Backend, signals: StopSignals) -> bool:
    """Waits for the end, and says so if it does not come soon; true: another signal came."""
    if signals.wait(core.stopped_fd(), SOON):
        return True
    count = core.counters()[-1]
    if count and core.state != "stopped":
        noun = "request" if count == 1 else "requests"
        # Who reads the log may keep it waiting, and must not keep this thread.
        text = f"stopping: {count} {noun} in flight, at most {DRAIN:.0f} s"
        _core.log_warning(f"{text}; Ctrl-C again leaves at once")
    return signals.wait(core.stopped_fd(), DRAIN + 1)


def _never_runs(callback: object) -> str | None:
    """What a function is whose call runs nothing of its body, in words."""
    function = getattr(callback, "__func__", callback)
    flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
    return next((words for flag, words in LAZY_FUNCTIONS.items() if flags & flag), None)


def _missing(device: Device) -> str | None:
    """The callback without which the device can do nothing, if it has not got it."""

    def lacks(name: str, base: type[Device]) -> bool:
        return getattr(getattr(device, name), "__func__", None) is getattr(base, name)

    pushed = len(device.receive_queues) < device.num_queues
    if device.served_as == "queue" and pushed and lacks("on_queue", Device):
        return "on_queue"
    if isinstance(device, BlockDevice) and lacks("on_batch", BlockDevice):
        if lacks("read", BlockDevice):
            return "read, nor on_batch"
        if not device.read_only and lacks("write", BlockDevice):
            return "write: add it, or say read_only=True"
    saves, loads = (not lacks(name, Device) for name in ("save", "load"))
    if saves != loads:
        return "load, without which what save writes is lost" if saves else "save for its load"
    return None


def _overrides(device: Device) -> list[str]:
    """The optional callbacks that the device's class has."""
    base = BlockDevice if isinstance(device, BlockDevice) else Device
    names = (
        *("read_config", "write_config", "on_queue_stop", "save", "load"),
        *("flush", "discard", "write_zeroes", "on_batch"),
    )
    has = (name for name in names if getattr(type(device), name, None) is not None)
    return [name for name in has if getattr(type(device), name) is not getattr(base, name, None)]


def _printable(path: str) -> str:
    """A path for log records. It may hold bytes that are no text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def metrics_address(text: str) -> str:
    """An address to give metrics away at. ``ValueError`` if it is none."""
    _core.check_metrics_address(text)
    return text


def group_id(group: str | int | None) -> int | None:
    """A group's number. ``ValueError`` if there is no such group."""
    group = _checked_group(group)
    if group is None or isinstance(group, int):
        return group
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"there is no group {group!r}") from None


def _set_hooks() -> None:
    global _hooks_set
    if not _hooks_set:
        _hooks_set = True
        atexit.register(_stop_all)
        os.register_at_fork(after_in_child=_running.clear)


def _stop_all() -> None:
    """At exit, with the interpreter still alive: stops what still runs. Ctrl-C hurries that, and a
    second one ends the waiting.
    """
    cores = list(_running)
    try:
        try:
            _stop_together(cores, EXIT_LIMIT)
        except KeyboardInterrupt:
            _stop_together(cores, 0.0)
    except KeyboardInterrupt:
        pass
    finally:
        _core.end_logging()


def _stop_together(cores: list[_core.Backend], drain: float) -> None:
    """Stops all at once: requests in flight have ``drain`` seconds together."""
    for core in cores:
        core.request_stop(drain)
    deadline = time.monotonic() + drain
    for core in cores:
        core.stop(max(0.0, deadline - time.monotonic()))
