"""Testing a device with no virtual machine: a real front-end in the same process."""
