"""Another processor of the guest: changes bytes of guest memory as fast as it can.

Run as a program: `flipper.py FD OFFSET HEX HEX`. It writes the two values in turns at the offset
of the file behind the descriptor, with one store each, until it is killed. The first line on its
standard output says that it has begun.
"""

import mmap
import sys
from typing import Literal

FORMATS: "dict[int, Literal['H', 'I', 'Q']]" = {2: "H", 4: "I", 8: "Q"}


def main() -> None:
    descriptor, offset = int(sys.argv[1]), int(sys.argv[2])
    one, other = bytes.fromhex(sys.argv[3]), bytes.fromhex(sys.argv[4])
    memory = memoryview(mmap.mmap(descriptor, 0))
    field = memory[offset : offset + len(one)].cast(FORMATS[len(one)])
    first, second = int.from_bytes(one, "little"), int.from_bytes(other, "little")
    print("running", flush=True)
    while True:
        field[0] = first
        field[0] = second


if __name__ == "__main__":
    main()
