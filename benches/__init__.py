"""The side-by-side bench: this package's devices and their peers, in turns, in one run."""
