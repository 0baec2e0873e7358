"""``vhost-user bench``: measures the block device at a socket."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from vhost_user.limits import DAY

from .client import add_options, connected
from .exits import Exit, Failure
from .parser import checked
from .sizes import about, format_size, multiple_of, number_in, seconds_in
from .streams import note, out
from .table import render

if TYPE_CHECKING:
    from vhost_user import LoadReport

PATTERNS = ("randread", "randwrite", "read", "write")
MIN_RUNTIME = 0.001
"""Seconds."""

MAX_DEPTH = 32768
"""Requests in flight: as many as the largest ring has entries."""

MAX_BLOCK = (1 << 32) - 512
"""Bytes of a request, whose length has 32 bits."""

WRITING = ("randwrite", "write")


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    from vhost_user.devices.base import MAX_QUEUES

    add_options(parser)
    parser.description = f"{parser.description} Writing overwrites what is on the disk."
    parser.add_argument("--rw", choices=PATTERNS, default=PATTERNS[0], help="access (randread)")
    parser.add_argument(
        "--bs",
        type=checked(multiple_of(512, MAX_BLOCK)),
        default=4096,
        metavar="SIZE",
        help="request size (4k)",
    )
    parser.add_argument(
        "--iodepth",
        type=checked(number_in(1, MAX_DEPTH)),
        default=32,
        metavar="N",
        help="requests in flight a queue (32)",
    )
    parser.add_argument(
        "--numjobs",
        type=checked(number_in(1, MAX_QUEUES)),
        default=1,
        metavar="N",
        help="queues, each with its thread (1)",
    )
    parser.add_argument(
        "--runtime",
        type=checked(seconds_in(MIN_RUNTIME, DAY)),
        default=10.0,
        metavar="S",
        help="seconds to measure (10)",
    )
    parser.add_argument(
        "--poll", action="store_true", help="busy-wait for answers instead of sleeping"
    )
    parser.add_argument(
        "--packed", action="store_true", help="packed rings, which the back-end has to offer"
    )
    parser.add_argument(
        "--in-order",
        action="store_true",
        help="requests used in order, which the back-end has to offer",
    )
    parser.add_argument(
        "--inflight",
        action="store_true",
        help="keep the record of requests in flight, which the back-end has to offer",
    )
    parser.add_argument(
        "--dirty-log",
        action="store_true",
        help="have written pages logged, as in a migration; the back-end has to offer it",
    )
    parser.add_argument(
        "--iommu",
        action="store_true",
        help="name memory by addresses that the back-end translates; it has to offer that",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="first fill the whole disk with a pattern, then check what is read; overwrites it",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command."""
    _check(options)
    with connected(options.socket, options.timeout) as fd:
        report = measure(fd, options)
    result = summary(options, report)
    out(json.dumps(result, indent=2) if options.json else _for_people(options, result))
    if report.errors or report.mismatches:
        what = f"{report.errors} requests failed, {report.mismatches} read wrong data"
        raise Failure(f"{options.socket}: {what}")
    return Exit.OK


def measure(fd: int, options: argparse.Namespace) -> "LoadReport":
    """Drives the device at the other end of ``fd``."""
    from vhost_user import VirtioBlkDriver

    # A power of two with room for all that is in flight.
    entries = max(128, 1 << (options.iodepth - 1).bit_length())
    with VirtioBlkDriver(
        fd=fd,
        timeout=options.timeout,
        num_queues=options.numjobs,
        queue_size=entries,
        packed=options.packed,
        in_order=options.in_order,
        inflight=options.inflight,
        dirty_log=options.dirty_log,
        iommu=options.iommu,
    ) as driver:
        if driver.read_only and (options.verify or options.rw in WRITING):
            raise Failure(f"{options.socket} is read-only: it can only be read, without --verify")
        if options.verify:
            note(f"writing a pattern to {format_size(driver.size)}")
            driver.prepare_load()
        return driver.run_load(
            options.rw,
            block_bytes=options.bs,
            depth=options.iodepth,
            seconds=options.runtime,
            polling=options.poll,
            verify="sampled" if options.verify else "none",
        )


def summary(options: argparse.Namespace, report: "LoadReport") -> dict[str, Any]:
    """What is printed: names that stay, units in the names."""
    return {
        "socket": options.socket,
        "rw": options.rw,
        "block_size": options.bs,
        "iodepth": options.iodepth,
        "numjobs": options.numjobs,
        "packed": options.packed,
        "in_order": options.in_order,
        "inflight": options.inflight,
        "dirty_log": options.dirty_log,
        "iommu": options.iommu,
        "seconds": report.elapsed,
        "operations": report.ops,
        "bytes": report.bytes,
        "iops": report.iops,
        "bytes_per_second": report.bytes / report.elapsed,
        "latency_p50_us": report.p50 * 1e6,
        "latency_p99_us": report.p99 * 1e6,
        "kicks": report.kicks,
        "calls": report.calls,
        "verified": report.verified,
        "errors": report.errors,
        "mismatches": report.mismatches,
    }


def _check(options: argparse.Namespace) -> None:
    if options.verify and options.rw in WRITING:
        problem = f"--verify checks what is read, and --rw {options.rw} reads nothing"
        raise Failure(f"{problem}: leave out one of them", status=Exit.USAGE)


def _for_people(options: argparse.Namespace, result: dict[str, Any]) -> str:
    title = (
        f"{options.socket}: {options.rw}, {format_size(options.bs)}, {options.iodepth} in flight, "
        f"{options.numjobs} queue{'s' if options.numjobs > 1 else ''}{_rings(options)}, "
        f"{result['seconds']:.1f} s"
    )
    rows = [
        ("requests/s", f"{result['iops']:,.0f}"),
        ("throughput", f"{about(result['bytes_per_second'])}/s"),
        ("latency p50", f"{result['latency_p50_us']:.1f} us"),
        ("latency p99", f"{result['latency_p99_us']:.1f} us"),
        ("requests a kick", _ratio(result["operations"], result["kicks"])),
        ("requests a call", _ratio(result["operations"], result["calls"])),
    ]
    if options.verify:
        rows.append(("verified", f"{result['verified']:,}"))
    return f"{title}\n{render(rows)}"


def _rings(options: argparse.Namespace) -> str:
    asked = {
        "packed": options.packed,
        "in order": options.in_order,
        "with a record": options.inflight,
        "with a dirty log": options.dirty_log,
        "behind an IOMMU": options.iommu,
    }
    words = [word for word, is_asked in asked.items() if is_asked]
    return "".join(f", {word}" for word in words)


def _ratio(operations: int, notifications: int) -> str:
    return f"{operations / notifications:.1f}" if notifications else "none sent"
