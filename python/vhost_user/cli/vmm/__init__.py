"""The programs that run virtual machines, and what each has to be told of a device."""

MODULES = {
    "qemu": "qemu",
    "libvirt": "libvirt",
    "cloud-hypervisor": "cloud_hypervisor",
    "crosvm": "crosvm",
    "firecracker": "firecracker",
}
"""By the names that ``--for`` takes: the module here with ``PROGRAMS``, the names to look for, and
``snippet(device, machine)``."""
