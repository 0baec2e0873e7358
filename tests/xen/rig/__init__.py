"""A machine in QEMU that runs Xen with a Linux dom0, all of it from Debian's packages.

Nothing is installed, nothing needs root or hardware virtualisation: everything is unpacked under
``.cache/xen``. ``PYTHONPATH=tests python3 -m xen.rig fetch`` does the downloading ahead of time.
"""
