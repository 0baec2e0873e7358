"""DPDK's own test program as the driver of a network device.

Everything comes from Debian's archive and is unpacked under ``.cache/dpdk``; nothing is installed,
nothing needs root or huge pages. ``PYTHONPATH=tests python3 -m dpdk.rig fetch`` does the
downloading ahead of time.
"""
