"""What the package promises: ratios of two contenders' figures, taken within one round each."""

import statistics
from dataclasses import dataclass

from benches.contender import Result

#: The results of each contender, one a round.
Rounds = dict[str, list[Result]]


@dataclass(frozen=True)
class Mark:
    """The ratio of `figure` of `ours` to that of `theirs`, at least or at most `limit`."""

    name: str
    figure: str
    ours: str
    theirs: str
    at_least: float | None = None
    at_most: float | None = None

    def ratios(self, rounds: Rounds) -> list[float]:
        """One a round."""
        pairs = zip(rounds[self.ours], rounds[self.theirs], strict=True)
        return [getattr(ours, self.figure) / getattr(theirs, self.figure) for ours, theirs in pairs]

    def holds(self, rounds: Rounds) -> bool:
        """Whether the median ratio is on the right side."""
        median = statistics.median(self.ratios(rounds))
        if self.at_least is not None:
            return median >= self.at_least
        return self.at_most is not None and median <= self.at_most

    def line(self, rounds: Rounds) -> str:
        """For the table: the median, the spread, the limit, the verdict."""
        ratios = self.ratios(rounds)
        limit = f">= {self.at_least}" if self.at_least is not None else f"<= {self.at_most}"
        spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
        verdict = "holds" if self.holds(rounds) else "MISSED"
        median = statistics.median(ratios)
        return f"{self.name:58} {median:7.2f}  {spread:18} {limit:8} {verdict}"


@dataclass(frozen=True)
class Added:
    """What `ours` takes more than `theirs` of the server's processor, for one request: at most so
    many nanoseconds."""

    name: str
    ours: str
    theirs: str
    at_most: float

    def added(self, rounds: Rounds) -> list[float]:
        """One a round, in nanoseconds."""
        pairs = zip(rounds[self.ours], rounds[self.theirs], strict=True)
        return [1e3 * (ours.cpu_us - theirs.cpu_us) for ours, theirs in pairs]

    def holds(self, rounds: Rounds) -> bool:
        """Whether the median is on the right side."""
        return statistics.median(self.added(rounds)) <= self.at_most

    def line(self, rounds: Rounds) -> str:
        """For the table: the median, the spread, the limit, the verdict."""
        added = self.added(rounds)
        spread = f"({min(added):.1f} to {max(added):.1f})"
        verdict = "holds" if self.holds(rounds) else "MISSED"
        median = statistics.median(added)
        return f"{self.name:58} {median:7.1f}  {spread:18} <= {self.at_most:<5g} {verdict}"


MARKS: tuple[Mark | Added, ...] = (
    Mark(
        "Python per request : nbdkit's Python, IOPS", "iops", "per-request", "nbdkit", at_least=15
    ),
    Mark("Python per batch : per request, IOPS", "iops", "per-batch", "per-request", at_least=1.5),
    Mark("FileDisk : storage daemon threads, CPU", "cpu_us", "file", "qsd-threads", at_most=0.6),
    Mark("FileDisk : storage daemon io_uring, CPU", "cpu_us", "file", "qsd-uring", at_most=0.6),
    Mark("null device : storage daemon null-co, CPU", "cpu_us", "null", "qsd-null", at_most=0.6),
    Mark("null device : the build before, CPU", "cpu_us", "null", "null-before", at_most=1.05),
    Mark("FileDisk : the build before, CPU", "cpu_us", "file", "file-before", at_most=1.05),
    Mark("null device, packed ring : split, IOPS", "iops", "null-packed", "null", at_least=0.95),
    Mark("FileDisk, packed ring : split, IOPS", "iops", "file-packed", "file", at_least=0.95),
    Added("record kept, split, ns CPU a request", "null-record", "null", at_most=5),
    Added("record kept, packed, ns CPU a request", "null-packed-record", "null-packed", at_most=5),
    Added("metrics on, ns CPU a request", "null-metrics", "null", at_most=20),
    Added("dirty log on, null device, ns CPU a 4 KiB read", "null-log", "null", at_most=10),
    Added("dirty log on, FileDisk, ns CPU a 4 KiB read", "file-log", "file", at_most=10),
)
