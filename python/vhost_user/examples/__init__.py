"""Devices to read, run and start from: ``vhost-user run vhost_user.examples.ramdisk size=64M``."""
