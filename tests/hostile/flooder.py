"""A driver that never lets its queue run empty.

Run as a program: `flooder.py MEMORY_FD KICK_FD AVAILABLE USED`. The offsets of the available and
the used ring count from the start of the file. Its chains and slots are laid out already, one
chain for each of 32 slots in turn; it keeps 32 chains available until it is killed. The first line
on its standard output says that it has begun.
"""

import mmap
import os
import sys

CHAINS = 32


def main() -> None:
    memory_fd, kick_fd, available, used = map(int, sys.argv[1:])
    memory = memoryview(mmap.mmap(memory_fd, 0))
    available_index = memory[available + 2 : available + 4].cast("H")
    used_index = memory[used + 2 : used + 4].cast("H")
    os.set_blocking(kick_fd, False)
    print("running", flush=True)
    while True:
        available_index[0] = used_index[0] + CHAINS & 0xFFFF
        os.eventfd_write(kick_fd, 1)


if __name__ == "__main__":
    main()
