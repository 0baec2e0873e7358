"""A socket's rights, as the user sees them who runs the virtual machine."""

import grp
import json
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from ..exits import Exit, Failure, one_line
from .finding import Finding, State

LONGEST = 107
"""Bytes of a path that fit into a socket's address: unix(7)."""

OF_LIBVIRT = ("libvirt-qemu", "qemu")
"""Users as whom libvirt runs QEMU: Debian's and Fedora's."""


def look(path: str, user: str | None) -> Iterator[Finding]:
    """The socket itself; whether ``user`` may use it, or this user and the one of libvirt."""
    yield _socket(path)
    if user is not None:
        yield _rights(path, _known(user), "wrong")
        return
    yield _rights(path, pwd.getpwuid(os.geteuid()) if _has_name() else None, "wrong")
    for name in OF_LIBVIRT:
        try:
            yield _rights(path, pwd.getpwnam(name), "note")
        except KeyError:
            continue


def _known(user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except KeyError:
        raise Failure(f"--user {user}: there is no such user", status=Exit.USAGE) from None


def _has_name() -> bool:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return True


def _socket(path: str) -> Finding:
    length = len(os.fsencode(path))
    if length > LONGEST:
        found = f"the path has {length} bytes, and {LONGEST} fit into a socket's address"
        return Finding("socket", "wrong", found, "use a shorter path, or a relative one")
    try:
        state = os.stat(path)
    except OSError as error:
        found = f"{path}: {one_line(error)}"
        return Finding("socket", "wrong", found, "start the back-end, with this --socket-path")
    if not stat.S_ISSOCK(state.st_mode):
        return Finding("socket", "wrong", f"{path} is no socket", "remove it, or use another path")
    owner, group = _user_name(state.st_uid), _group_name(state.st_gid)
    mode = stat.S_IMODE(state.st_mode)
    found = f"{path} has mode {mode:04o}, owner {owner}, group {group}"
    return Finding("socket", "ok", found)


def _rights(path: str, user: pwd.struct_passwd | None, if_not: State) -> Finding:
    name = "this user" if user is None else f"user {user.pw_name}"
    lacking = _first_closed(path, user)
    if lacking is None:
        return Finding("socket rights", "ok", f"{name} may use {path}")
    place, right = lacking
    if not place:
        advice = f"run this as root, or as that user: vhost-user doctor --socket {path}"
        return Finding("socket rights", "note", f"{name}: {right}", advice)
    is_socket = place == os.path.abspath(path)
    advice = (
        "start the back-end with --mode 0660 and --group for a group that the user is in"
        if is_socket
        else f"let the user through: chmod o+x {place}, or put the socket elsewhere"
    )
    return Finding("socket rights", if_not, f"{name} may not {right} {place}", advice)


def _first_closed(path: str, user: pwd.struct_passwd | None) -> tuple[str, str] | None:
    """The folder or socket that the user may not use, and what it may not do; None: it may."""
    place = os.path.abspath(path)
    if user is None or user.pw_uid == os.geteuid():
        return _closed(place)
    if os.geteuid() != 0:
        return "", "what another user may do, only root and that user can try"
    return _tried_as(place, user)


def _closed(place: str) -> tuple[str, str] | None:
    for folder in reversed(Path(place).parents):
        if not os.access(folder, os.X_OK):
            return str(folder), "enter"
    return None if os.access(place, os.R_OK | os.W_OK) else (place, "connect to")


def _tried_as(place: str, user: pwd.struct_passwd) -> tuple[str, str] | None:
    """Tries it in a process of that user's, which is what finds access lists too."""
    groups = os.getgrouplist(user.pw_name, user.pw_gid)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
            os.write(writing, json.dumps(_closed(place)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    if not told:
        raise Failure(f"cannot become user {user.pw_name}, to see what it may do")
    found = json.loads(told)
    return None if found is None else (found[0], found[1])


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
