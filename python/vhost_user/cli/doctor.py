"""``vhost-user doctor``: what back-ends need of this host, what is missing, and what to do."""

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence

from .exits import Exit, Failure
from .health.finding import Finding
from .streams import out

INDENT = 7


def configure(parser: argparse.ArgumentParser) -> None:
    """Says what the command takes."""
    parser.add_argument(
        "--socket", metavar="PATH", help="look at this socket's rights too; nobody connects to it"
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="as whom the virtual machine runs, who has to get at the socket (this user; libvirt's "
        "is looked at too)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with fixed names")


def run(options: argparse.Namespace) -> int:
    """Runs the command. Status 1 if anything is wrong."""
    if options.user is not None and options.socket is None:
        raise Failure("--user needs --socket", status=Exit.USAGE)
    findings = list(look(options.socket, options.user))
    is_well = all(finding.state != "wrong" for finding in findings)
    if options.json:
        checks = [finding._asdict() for finding in findings]
        out(json.dumps({"ok": is_well, "checks": checks}, indent=2))
    else:
        for line in render(findings):
            out(line)
    return Exit.OK if is_well else Exit.FAILED


def look(socket: str | None, user: str | None) -> Iterator[Finding]:
    """Everything that is to be looked at, in order."""
    from .health import confinement, hypervisor, limits, memory, serving, socket_rights
    from .health.host import Host

    host = Host()
    # First, since it forks, which a process that serves may not do any more.
    of_socket = list(socket_rights.look(socket, user)) if socket is not None else []
    yield from serving.look()
    yield from memory.look(host)
    yield from limits.look(host)
    yield from hypervisor.look(host)
    yield from confinement.look(host)
    yield from of_socket


def render(findings: Sequence[Finding]) -> Iterable[str]:
    """The findings for people, and a last line that sums them up."""
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        yield f"{finding.state:{INDENT}}{finding.name:{width}}  {finding.found}"
        if finding.advice:
            yield f"{'':{INDENT + width}}  -> {finding.advice}"
    count = sum(finding.state == "wrong" for finding in findings)
    yield "nothing is wrong" if count == 0 else f"{count} of {len(findings)} are wrong"
