"""Keeps a front-end's connection while the back-end is ended, dies and is replaced."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from vhost_user import _core, systemd

from .child import Child, descriptor_limits, since
from .exits import Exit, Failure
from .limited import LimitedNotes
from .sources import Sources
from .streams import note

GRACE = 8.0
"""Seconds that a back-end has to end: it gives its requests 5."""

LINGERS = 2.0
"""Seconds after which a process that has hung up is taken to live on: the end of a process closes
its sockets a moment before it is over."""

QUICK = 1.0
"""Seconds. A back-end that lives no longer has died at once."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds before the next one is started when several have died at once. Doubles each time."""

SOURCES_INTERVAL = 0.25
"""Seconds between two looks at the files of the code."""


def open_relay(
    path: str | None, fd: int | None, *, connect: bool, mode: int | None, group: str | int | None
) -> _core.Relay:
    """Opens the socket of front-ends: with neither path nor descriptor a service manager's."""
    from vhost_user.server import group_id  # Not at the top: all of a back-end comes with it.

    if path is None and fd is None:
        fd = systemd.listen_fd()
    return _core.Relay(
        listen=None if connect else path,
        dial=path if connect else None,
        fd=fd,
        mode=0o600 if mode is None else mode,
        group=group_id(group),
    )


class Keeper:
    """One relay, and the back-end that is behind it."""

    def __init__(
        self,
        relay: _core.Relay,
        command: Sequence[str],
        *,
        give_up_after: int,
        once: bool = False,
        sources: Sources | None = None,
    ) -> None:
        """``command``: what is run for a back-end. ``give_up_after``: how many may die at once, one
        after the other; 0: any number. ``once``: end when the first front-end has left.
        ``sources``: the code of the back-end, which is replaced when that changes.
        """
        self._relay = relay
        self._command = list(command)
        self._limit = give_up_after
        self._once = once
        self._sources = sources
        self._limits = descriptor_limits()
        self._epoll = select.epoll()
        self._leaving: list[Child] = []
        self._deaths = 0
        self._serves_since: float | None = None
        self._upgrade_wanted = False
        self._notes = LimitedNotes()

    def run(self, where: str, listening: Callable[[], None]) -> int:
        """Serves until a signal ends it. Calls ``listening`` when front-ends can connect."""
        with self._signals():
            restored = self._restore()
            self._child = self._start_again() if restored else self._start()
            try:
                self._attach_first(where, restored)
                listening()
                while self._turn():
                    self._tell_not_stored()
                return Exit.OK
            except Failure:
                self._relay.hang_up()
                raise
            finally:
                systemd.notify("STOPPING=1")
                self._end()
                self._notes.sum_up()

    def _start(self, *, follows: bool = False) -> Child:
        watched = self._sources is not None
        child = Child(self._command, self._limits, sources=watched, follows=follows)
        self._epoll.register(child.pidfd, select.EPOLLIN)
        return child

    def _restore(self) -> bool:
        """Takes up the front-end of a former keeper, if the service manager has kept it."""
        address, stored = systemd.store_address(), systemd.stored_fds()
        if address is not None:
            self._relay.store_at(address)
        restored = False
        for number in sorted(stored, reverse=True):
            # All others are older.
            if number == max(stored):
                why = self._relay.restore(stored[number], number)
                restored = why is None
                if why is not None:
                    note(f"vhost-user: the last keeper's front-end is lost: {why}")
                    self._relay.hang_up()
            else:
                systemd.notify(f"FDSTOREREMOVE=1\nFDNAME={systemd.STORED}{number}")
            os.close(stored[number])
        return restored

    def _tell_not_stored(self) -> None:
        why = self._relay.not_stored()
        if why is not None:
            note(
                f"vhost-user: nothing is stored for the next keeper any more: {why}; "
                "if this one dies, the front-end loses its connection"
            )

    def _attach_first(self, where: str, restored: bool) -> None:
        """A back-end that cannot be had at the start will not be had later, but for a guest that
        waits already.
        """
        failure = self._attach(self._child)
        if failure is not None and restored:
            if not self._child.ended(LINGERS):
                self._child.kill()
            self._follow(f" ({failure})")
        elif failure is not None:
            how = self._child.end_in_words() if self._child.ended(LINGERS) else failure
            raise Failure(f"the back-end does not start: it {how}")
        if not self._relay.records:
            note(
                "vhost-user: the back-end does not record requests in flight (INFLIGHT_SHMFD): "
                "when it dies, its front-end is hung up on; only an upgrade goes unnoticed"
            )
        self._look_at(self._child)
        hidden = self._relay.hidden
        apart = f", without {hidden}" if hidden else ""
        if restored:
            note("vhost-user: the front-end of the last keeper goes on here")
        note(f"{where}  held for process {self._child.pid}{apart}: {' '.join(self._command)}")
        systemd.notify("READY=1")

    def _turn(self) -> bool:
        """One event. False: there is nothing more to do."""
        kind, why = self._relay.run(self._epoll.fileno())
        if kind == "over":
            return False
        if kind == "held":
            self._tell("held", f"no front-end can be taken now: {why}")
        if kind == "lost":
            self._lost(why)
        if kind == "left":
            if why:
                self._tell("left", f"the front-end was hung up on: {why}")
            if self._once:
                return False
            self._again()
        if kind == "woken":
            self._woken()
        return True

    def _woken(self) -> None:
        self._drain_wakes()
        self._reap()
        if self._child.ended(0):
            self._follow("")
        elif self._upgrade_wanted or self._has_changed():
            self._upgrade_wanted = False
            self._upgrade()

    def _lost(self, why: str) -> None:
        """The connection to the back-end is over: it is dead, or wants no more of it."""
        if self._child.ended(LINGERS):
            self._follow("")
        elif not self._relay.has_frontend:
            self._again()
        else:
            self._tell("lost", f"the front-end was hung up on, as the back-end has: {why}")
            self._relay.hang_up()
            self._again()

    def _again(self) -> None:
        """Another connection to the same back-end, for the next front-end."""
        if self._attach(self._child) is not None:
            if not self._child.ended(LINGERS):
                self._child.kill()
            self._follow("")

    def _follow(self, why: str) -> None:
        """Starts back-ends, until one goes on."""
        while True:
            noticed, gone = time.monotonic(), self._child
            end = f"{gone.end_in_words()}{why}; another one follows"
            self._tell("ended", f"process {gone.pid} {end}")
            self._count(noticed, gone.end_in_words())
            self._forget(gone)
            self._child = self._start_again()
            failure = self._attach(self._child)
            if failure is None:
                self._tell("goes on", f"process {self._child.pid} goes on, {since(noticed)} later")
                self._look_at(self._child)
                return
            why = f" ({failure})"
            if not self._child.ended(LINGERS):
                self._child.kill()

    def _start_again(self) -> Child:
        """Starts the next one. What is short may be there at another try, and so may the command,
        which is away for a moment while its package is replaced.
        """
        while True:
            # Where no ring runs another back-end may have what the guest left: it has moved.
            follows = self._relay.has_frontend and not self._relay.runs
            try:
                return self._start(follows=follows)
            except Failure as failure:
                note(f"vhost-user: {failure}; another try follows")
                self._count(time.monotonic(), f"did not start: {failure}")

    def _count(self, now: float, how: str) -> None:
        """Gives up, or pauses, when one back-end after the other dies at once. The last one did as
        ``how`` says.
        """
        serves_since, self._serves_since = self._serves_since, None
        at_once = serves_since is None or now - serves_since < QUICK
        self._deaths = self._deaths + 1 if at_once else 0
        if self._limit and self._deaths >= self._limit:
            raise Failure(
                f"{self._deaths} back-ends in a row have died within {QUICK:g} s, the last one "
                f"{how}: given up"
            )
        if self._deaths > 1:
            time.sleep(min(FIRST_PAUSE * 2 ** (self._deaths - 2), LONGEST_PAUSE))

    def _attach(self, child: Child) -> str | None:
        """Has a back-end go on. What is wrong with it, if it does not."""
        self._relay.served_by(child.pidfd)
        failure = self._connected(child, self._relay.attach)
        if failure is not None and failure[0] == "refused":
            self._tell("refused", f"the front-end was hung up on: {failure[1]}")
            self._relay.hang_up()
            failure = self._connected(child, self._relay.attach)
        if failure is not None:
            return failure[1]
        self._serves_since = time.monotonic()
        return None

    def _connected(
        self, child: Child, use: Callable[[int], tuple[str, str] | None]
    ) -> tuple[str, str] | None:
        try:
            with child.connect() as sock:
                return use(sock.fileno())
        except OSError as error:
            return "lost", f"it does not listen: {error.strerror}"

    def _upgrade(self) -> None:
        """Puts a new process in the place of the present one."""
        systemd.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        old = self._child
        try:
            new = self._start(follows=True)
        except Failure as failure:
            note(f"vhost-user: {failure}; process {old.pid} goes on")
        else:
            self._replace(old, new)
        systemd.notify("READY=1")

    def _replace(self, old: Child, new: Child) -> None:
        failure = self._connected(new, self._relay.prepare)
        if failure is not None:
            how = new.end_in_words() if new.ended(LINGERS) else failure[1]
            note(f"vhost-user: the new back-end cannot follow: it {how}; process {old.pid} goes on")
            self._look_at(new)
            self._discard(new)
            return
        begun = time.monotonic()
        parked = self._relay.park()
        if parked is not None:
            note(f"vhost-user: process {old.pid} does not hand over: {parked[1]}; it is killed")
            old.kill()
        elif not self._relay.runs:
            # No guest waits, and what the old one has open may be wanted by the next front-end.
            old.end(GRACE)
        self._child = new
        self._relay.served_by(new.pidfd)
        failure = self._relay.take_over()
        if failure is None:
            note(f"vhost-user: process {new.pid} follows process {old.pid}, in {since(begun)}")
            self._serves_since = time.monotonic()
            self._look_at(new)
            self._leave(old)
        elif parked is None and self._attach(old) is None:
            note(f"vhost-user: the new back-end does not go on: {failure[1]}; {old.pid} does")
            self._child = old
            self._discard(new)
        else:
            self._leave(old)
            new.kill()
            self._follow(f" ({failure[1]})")

    def _leave(self, old: Child) -> None:
        """Lets a process end that has handed over."""
        old.signal(signal.SIGTERM)
        self._leaving.append(old)
        self._reap()

    def _tell(self, kind: str, line: str) -> None:
        """What a front-end or a back-end can cause any number of times."""
        self._notes.tell(kind, f"vhost-user: {line}")

    def _reap(self) -> None:
        for child in [child for child in self._leaving if child.ended(0)]:
            self._leaving.remove(child)
            self._forget(child)

    def _discard(self, child: Child) -> None:
        child.kill()
        self._forget(child)

    def _forget(self, child: Child) -> None:
        self._epoll.unregister(child.pidfd)
        child.close()

    def _look_at(self, child: Child) -> None:
        if self._sources is not None:
            self._sources.add(child.sources())

    def _has_changed(self) -> bool:
        return self._sources is not None and self._sources.have_changed()

    def _end(self) -> None:
        """Ends all processes: in order, unless another signal comes."""
        for child in (self._child, *self._leaving):
            child.end(GRACE)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Lets signals wake the relay: SIGHUP asks for an upgrade."""
        self._reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._reader, select.EPOLLIN)
        former_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        former = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGHUP, self._asked),
                (signal.SIGALRM, _woken_only),
                # Where it is ignored, as by some that start programs, children leave no status.
                (signal.SIGCHLD, signal.SIG_DFL),
            )
        }
        if self._sources is not None:
            signal.setitimer(signal.ITIMER_REAL, SOURCES_INTERVAL, SOURCES_INTERVAL)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in former.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(former_fd)
            for fd in (self._reader, writer):
                os.close(fd)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self._upgrade_wanted = True

    def _drain_wakes(self) -> None:
        try:
            while os.read(self._reader, 512):
                pass
        except BlockingIOError:
            pass


def _woken_only(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor has it already."""
