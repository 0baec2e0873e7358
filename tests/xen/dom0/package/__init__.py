"""The package's back-end on a real hypervisor."""
