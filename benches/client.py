"""The client of a vhost-user server: one run of the load generator, as JSON on stdout.

`python -m benches.client SOCKET PID DEPTH SECONDS [--poll] [--verify] [--packed] [--inflight]
[--dirty-log] [--iommu]`; PID is the server's, whose processor time is read just before and just
after the run.
"""

import argparse
import json
import time

import vhost_user as vu

WARM_UP_SECONDS = 0.2
SCHEDULED = 2
"""Which of its clocks: what the scheduler has given it."""


def main() -> None:
    """Runs the client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("pid", type=int)
    parser.add_argument("depth", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--poll", action="store_true")
    parser.add_argument("--verify", action="store_true")
    for name in ("--packed", "--inflight", "--dirty-log", "--iommu"):
        parser.add_argument(name, action="store_true")
    options = parser.parse_args()
    with vu.VirtioBlkDriver(
        options.socket,
        packed=options.packed,
        inflight=options.inflight,
        dirty_log=options.dirty_log,
        iommu=options.iommu,
    ) as driver:
        if options.verify:
            driver.prepare_load()
        load(driver, options, WARM_UP_SECONDS)
        before = cpu_seconds(options.pid)
        report = load(driver, options, options.seconds)
        cpu = cpu_seconds(options.pid) - before
    if report.errors or report.mismatches:
        raise SystemExit(f"{report.errors} requests failed, {report.mismatches} read wrong data")
    latency = {"p50_us": report.p50 * 1e6, "p99_us": report.p99 * 1e6}
    print(json.dumps({"iops": report.iops, "cpu_us": cpu * 1e6 / report.ops, **latency}))


def load(driver: vu.VirtioBlkDriver, options: argparse.Namespace, seconds: float) -> vu.LoadReport:
    """Random reads of 4 KiB."""
    return driver.run_load(
        "randread",
        block_bytes=4096,
        depth=options.depth,
        seconds=seconds,
        polling=options.poll,
        verify="sampled" if options.verify else "none",
    )


def cpu_seconds(pid: int) -> float:
    """Time on a processor of a process, with all threads that it has had, to the nanosecond.

    The number of a process's clock is made from its own: clock_getcpuclockid(3).
    """
    return time.clock_gettime(~pid << 3 | SCHEDULED)


if __name__ == "__main__":
    main()
