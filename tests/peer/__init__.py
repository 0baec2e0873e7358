"""A vhost-user front-end and virtio driver that shares no code with the package.

Written from the public documents alone (QEMU "Vhost-user Protocol", VIRTIO 1.3 "Split
Virtqueues" and "Block Device") with `struct`, `socket` and `mmap`, so that a mistake in the
package's own front-end cannot hide the same mistake in its back-end. It can also send what no
sane front-end would: every layer leaves the raw bytes within reach.
"""
