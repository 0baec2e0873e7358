"""Packages from Debian's archive, downloaded and unpacked without being installed.

apt runs with its state, lists and sources in the cache directory and believes that nothing is
installed. So it needs no root, reads nothing of the host's package database, and names every
library that a program needs: the unpacked tree runs on its own C library.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ARCHITECTURE = "amd64"
"""What the host's programs are taken for."""


class ArchiveError(Exception):
    """apt is missing, the archive cannot be reached, or a package is not there."""


def mirror(variable: str, name: str) -> str:
    """Where an archive is: what ``variable`` says, or where the system's own apt gets it from.

    ``name`` is how an archive's address ends, whichever mirror has it.
    """
    if address := os.environ.get(variable):
        return address
    # What an update would fetch: known even where there has been none yet.
    command = ["apt-get", "update", "--print-uris"]
    plan = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    known = re.search(rf"'(\S+/{name})/dists/", plan)
    if known:
        return known[1]
    raise ArchiveError(
        f"the system's apt knows no mirror of Debian's archive {name}: set {variable} to one"
    )


def numbers(version: str) -> tuple[int, ...]:
    """The numbers of the program's own version in Debian's: (11, 1, 3) of ``1:11.1.3+ds-1``."""
    own = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    if own is None:
        raise ArchiveError(f"{version!r} is no version of a package")
    return tuple(map(int, own[1].split(".")))


class Archive:
    """One suite of the archive, seen through a private apt.

    ``suite`` is ``bookworm``, a later release, or the backports of a release, which stand on that
    release; of two versions its own wins.
    ``directory`` holds apt's state and is made when missing. ``architecture`` is Debian's name of
    the machine that the packages are for.
    """

    def __init__(self, suite: str, directory: Path, architecture: str = ARCHITECTURE) -> None:
        self.suite = suite
        self.directory = directory
        self.architecture = architecture
        if platform.machine() != "x86_64":
            raise ArchiveError(
                "the tests with a virtual machine run Debian's amd64 programs and need an "
                "x86-64 host"
            )
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise ArchiveError(
                "the tests with a virtual machine take QEMU and a kernel from Debian's archive "
                "and need apt-get and dpkg-deb: apt-get install apt dpkg"
            )
        self.mirror = mirror("DEBIAN_MIRROR", "debian")
        self.security_mirror = mirror("DEBIAN_SECURITY_MIRROR", "debian-security")
        self._write_configuration()

    def update(self) -> None:
        """Fetch the lists of packages."""
        self._run("apt-get", "update", "-qq", "-o", "APT::Update::Error-Mode=any")

    def closure(self, packages: Sequence[str]) -> list[str]:
        """``packages`` and all that they depend on, each as ``name=version``."""
        plan = self._run("apt-get", "install", "--simulate", "--no-install-recommends", *packages)
        return [
            f"{name}={version}"
            for name, version in re.findall(r"^Inst (\S+) \((\S+)", plan, re.MULTILINE)
        ]

    def dependency(self, package: str, pattern: str) -> str:
        """The direct dependency of ``package`` whose name matches ``pattern``."""
        shown = self._run("apt-cache", "show", "--no-all-versions", self.candidate(package))
        match = re.search(rf"^Depends:.*?\b({pattern})", shown, re.MULTILINE)
        if match is None:
            raise ArchiveError(f"{package} in {self.suite} depends on no {pattern}")
        return match[1]

    def dependencies(self, package: str, pattern: str) -> list[str]:
        """The direct dependencies of ``package`` whose whole names match ``pattern``; of
        alternatives the first.
        """
        shown = self._run("apt-cache", "show", "--no-all-versions", self.candidate(package))
        lists = re.findall(r"^Depends: (.*)$", shown, re.MULTILINE)
        names = [name for line in lists for name in re.findall(r"(?:^|, )([\w.+-]+)", line)]
        return [name for name in names if re.fullmatch(pattern, name)]

    def candidate(self, package: str) -> str:
        """The version of ``package`` that this suite would install, as ``name=version``."""
        policy = self._run("apt-cache", "policy", package)
        match = re.search(r"Candidate: (\S+)", policy)
        if match is None or match[1] == "(none)":
            raise ArchiveError(f"{self.suite} has no package {package}")
        return f"{package}={match[1]}"

    def with_libraries(
        self, packages: Sequence[str], libraries: str = r"lib[\w.+-]+", more: Sequence[str] = ()
    ) -> list[str]:
        """``packages`` without all that they depend on, but with every library that they need.

        ``libraries`` matches the whole names of their dependencies that are unpacked, with all that
        these depend on; ``more`` names further packages to be treated like these.
        """
        needed = {name for p in packages for name in self.dependencies(p, libraries)}
        closure = self.closure([*sorted(needed), *more])
        return list(dict.fromkeys([*map(self.candidate, packages), *closure]))

    def at_least(self, package: str, version: str) -> None:
        """Refuse a suite that has ``package`` only in versions older than ``version``."""
        found = self.candidate(package).partition("=")[2]
        if numbers(found) < numbers(version):
            raise ArchiveError(
                f"{self.suite} at {self.mirror} has {package} {found}, and the tests need "
                f"{version} or newer: is the mirror up to date?"
            )

    def unpack(self, packages: Sequence[str], root: Path) -> None:
        """Download ``packages`` alone, without dependencies, and unpack them into ``root``."""
        downloads = self.directory / "downloads"
        downloads.mkdir(exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        self._run("apt-get", "download", "-qq", *packages, cwd=downloads)
        for package in sorted(downloads.glob("*.deb")):
            self._run("dpkg-deb", "--extract", str(package), str(root))
            package.unlink()

    def _run(self, *command: str, cwd: Path | None = None) -> str:
        environment = dict(os.environ, APT_CONFIG=str(self._configuration), LC_ALL="C")
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ArchiveError(
                f"{' '.join(command)} ended with {done.returncode} "
                f"(archive: {self.mirror}, {self.security_mirror}):\n{done.stderr[-2000:]}"
            )
        return done.stdout

    @property
    def _configuration(self) -> Path:
        return self.directory / "apt.conf"

    def _write_configuration(self) -> None:
        for name in ("lists/partial", "cache/archives/partial", "state"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        base = self.suite.removesuffix("-backports") if "-" in self.suite else "bookworm"
        suites = [(self.mirror, base), (self.security_mirror, f"{base}-security")]
        if self.suite != base:
            suites.append((self.mirror, self.suite))
        (self.directory / "sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {url} {suite} main\n" for url, suite in suites)
        )
        directory = self.directory
        preference = f'APT::Default-Release "{self.suite}";' if self.suite != "bookworm" else ""
        self._configuration.write_text(
            f"""\
APT::Architecture "{self.architecture}";
APT::Architectures {{ "{self.architecture}"; }};
{preference}
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Dir::State "{directory}/state";
Dir::State::lists "{directory}/lists";
Dir::State::status "{directory}/status";
Dir::Cache "{directory}/cache";
Dir::Etc::sourcelist "{directory}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::Etc::preferences "/dev/null";
"""
        )
