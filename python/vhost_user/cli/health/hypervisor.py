"""Xen and KVM."""

from collections.abc import Iterator

from .finding import Finding
from .host import Host

KVM = "/dev/kvm"
TYPE = "/sys/hypervisor/type"
CAPABILITIES = "/proc/xen/capabilities"


def look(host: Host) -> Iterator[Finding]:
    """What a virtual machine runs on."""
    yield _kvm(host)
    yield _xen(host)


def _kvm(host: Host) -> Finding:
    if host.exists(KVM) and host.may_use(KVM):
        return Finding("kvm", "ok", f"{KVM} is here, and open to this user")
    what = f"{KVM} is not open to this user" if host.exists(KVM) else f"there is no {KVM}"
    advice = (
        "add the user to the group that the file has, often kvm"
        if host.exists(KVM)
        else "load the module kvm_intel or kvm_amd, or switch virtualisation on in the firmware"
    )
    return Finding("kvm", "note", f"{what}: guests are emulated, slowly", advice)


def _xen(host: Host) -> Finding:
    from vhost_user.xen import DEVICES

    if host.text(TYPE) != "xen":
        return Finding("xen", "ok", "this is no host of Xen; --xen has nothing to map here")
    who = "dom0" if "control_d" in (host.text(CAPABILITIES) or "") else "a domain"
    missing = [path for path in DEVICES if not host.exists(path)]
    closed = [path for path in DEVICES if host.exists(path) and not host.may_use(path)]
    if missing:
        found = f"this is {who} of Xen, without {' and '.join(missing)}"
        return Finding("xen", "wrong", found, "load them: modprobe -a xen_privcmd xen_gntdev")
    if closed:
        found = f"this is {who} of Xen; {' and '.join(closed)} are not open to this user"
        return Finding("xen", "wrong", found, "run the back-end as root, or give it rights to them")
    return Finding("xen", "ok", f"this is {who} of Xen, with {' and '.join(DEVICES)}")
