"""A virtual machine for tests: a Debian kernel under QEMU's software emulation.

Everything comes from Debian's archive and is unpacked under ``.cache/guest``; nothing is
installed, nothing needs root or hardware virtualisation.
``PYTHONPATH=tests python3 -m guest.rig fetch`` does the downloading ahead of time.
"""
