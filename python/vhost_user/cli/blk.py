"""``vhost-user blk``: serves an image file as a block device."""

import argparse
from collections.abc import Callable
from pathlib import Path

from .captive import serve_beside
from .exits import Exit, Failure, one_line
from .held import follows
from .hold import around
from .lines import set_format
from .parser import OnceDisk, checked
from .serve import add_options, endpoint, serve
from .sizes import number_in, power_of_two

HINTS: dict[type[Exception], str] = {
    FileNotFoundError: "make one with: truncate --size 1G {path}",
    PermissionError: "check the file's mode, or add --read-only",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    from vhost_user.devices.base import MAX_QUEUE_SIZE, MAX_QUEUES
    from vhost_user.devices.block import MAX_BLOCK, NUM_QUEUES, SECTOR

    add_options(parser)
    disk = parser.add_argument_group("the disk")
    disk.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE", help="raw image file, or block device"
    )
    disk.add_argument(
        "--blk-file",
        "--image",
        action=OnceDisk,
        type=Path,
        metavar="PATH",
        help="the same, by the name that QEMU's conventions give it",
    )
    disk.add_argument("--read-only", action="store_true", help="refuse writes")
    disk.add_argument(
        "--direct", action="store_true", help="move data past the host's page cache (O_DIRECT)"
    )
    disk.add_argument(
        "--incoming",
        action="store_true",
        help="start though another back-end has the image: its guest is to come here",
    )
    disk.add_argument(
        "--block-size",
        type=checked(power_of_two(SECTOR, MAX_BLOCK)),
        metavar="BYTES",
        help="bytes of a logical block (those of a block device of the host; 512 for a file)",
    )
    disk.add_argument(
        "--num-queues",
        type=checked(number_in(1, MAX_QUEUES)),
        default=NUM_QUEUES,
        metavar="N",
        help=f"most queues that the guest may use ({NUM_QUEUES})",
    )
    disk.add_argument(
        "--queue-size",
        type=checked(power_of_two(2, MAX_QUEUE_SIZE)),
        default=MAX_QUEUE_SIZE,
        metavar="N",
        help=f"entries of the longest queue that is taken, a power of two ({MAX_QUEUE_SIZE})",
    )
    disk.add_argument(
        "--serial", type=checked(_serial), default="", metavar="TEXT", help="up to 20 bytes"
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    path = _image(options)
    set_format(options.log_format)

    def serve_it(listening: Callable[[], None]) -> int:
        endpoint(options)
        if options.hold:
            return around(options, listening)
        return serve(_disk(path, options), options, listening)

    return serve_beside(options, serve_it)


def _serial(text: str) -> str:
    from vhost_user.devices.block import check_serial

    check_serial(text)
    return text


def _image(options: argparse.Namespace) -> Path:
    given = [path for path in (options.image, options.blk_file) if path is not None]
    if len(given) != 1:
        what = "given twice: IMAGE or --blk-file PATH" if given else "needed: its path"
        raise Failure(f"one image is {what} (see vhost-user blk --help)", status=Exit.USAGE)
    return Path(given[0])


def _disk(path: Path, options: argparse.Namespace) -> object:
    from vhost_user import FileDisk

    try:
        return FileDisk(
            path,
            read_only=options.read_only,
            direct=options.direct,
            incoming=options.incoming or follows(),
            block_size=options.block_size,
            num_queues=options.num_queues,
            queue_size=options.queue_size,
            serial=options.serial,
        )
    except (OSError, ValueError) as error:
        hint = HINTS.get(type(error))
        advice = f"; {hint.format(path=path)}" if hint else ""
        raise Failure(f"{one_line(error)}{advice}") from error
