"""SELinux and AppArmor, which may keep QEMU from a socket that its user may use."""

from collections.abc import Iterator

from .finding import Finding
from .host import Host

SELINUX = "/sys/fs/selinux/enforce"
APPARMOR = "/sys/module/apparmor/parameters/enabled"


def look(host: Host) -> Iterator[Finding]:
    """Which of the two is on."""
    on = []
    if host.number(SELINUX) == 1:
        on.append("SELinux")
    if host.text(APPARMOR) == "Y":
        on.append("AppArmor")
    if not on:
        yield Finding("confinement", "ok", "neither SELinux nor AppArmor is on")
        return
    yield Finding(
        "confinement",
        "note",
        f"{' and '.join(on)} is on, and may keep QEMU from a socket whatever its mode",
        "if QEMU gets `Permission denied` at a socket that its user may use, look at the system's "
        "audit log, and allow its type or profile to connect there",
    )
