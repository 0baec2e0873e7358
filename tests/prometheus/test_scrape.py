"""Prometheus scrapes a back-end under load, and promtool has nothing to say against its text."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import vhost_user as vu
from peer.process import eventually
from rig.archive import ArchiveError
from rig.tree import Tree

from .rig.packages import fetch

PATIENCE = 60.0
"""Seconds in which Prometheus starts and scrapes, on a busy machine."""


class RamDisk(vu.BlockDevice):
    """A disk in memory."""

    def __init__(self) -> None:
        super().__init__(size=1 << 20)
        self.mem = memoryview(bytearray(1 << 20))

    def read(self, offset: int, buf: memoryview, /) -> None:
        buf[:] = self.mem[offset : offset + len(buf)]

    def write(self, offset: int, buf: memoryview, /) -> None:
        self.mem[offset : offset + len(buf)] = buf


@pytest.fixture(scope="session")
def packages() -> Tree:
    try:
        return fetch()
    except ArchiveError as error:
        pytest.skip(f"Prometheus cannot be had: {error}")


@pytest.fixture
def backend(socket_path: Path) -> Iterator[vu.Backend]:
    """A disk that some requests were made of, and its metrics."""
    with vu.Backend(RamDisk(), socket=socket_path, metrics="127.0.0.1:0") as backend:
        with vu.VirtioBlkDriver.connect(socket_path) as driver:
            for sector in range(16):
                driver.pwrite(bytes(4096), sector * 4096)
                driver.pread(4096, sector * 4096)
        yield backend


def test_promtool_finds_nothing_wrong_with_names_and_text(
    packages: Tree, backend: vu.Backend
) -> None:
    done = subprocess.run(
        [*packages.program("usr/bin/promtool"), "check", "metrics"],
        input=backend.metrics().prometheus(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class Prometheus:
    """A server that scrapes one target each second."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, query: str) -> list[tuple[dict[str, str], float]]:
        """The samples of a query; none while the server starts."""
        words = urllib.parse.urlencode({"query": query})
        url = f"http://127.0.0.1:{self._port}/api/v1/query?{words}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                found = json.load(answer)["data"]["result"]
        except (urllib.error.URLError, ConnectionError):
            return []
        return [(sample["metric"], float(sample["value"][1])) for sample in found]

    def value(self, query: str) -> float | None:
        """The one value of a query, once there is one."""
        found = self.ask(query)
        return found[0][1] if len(found) == 1 else None


@contextmanager
def scraping(packages: Tree, directory: Path, target: str) -> Iterator[Prometheus]:
    config = directory / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s, scrape_timeout: 1s}\n"
        "scrape_configs:\n"
        f"- {{job_name: vhost-user, static_configs: [{{targets: ['{target}']}}]}}\n"
    )
    port = free_port()
    command = [
        *packages.program("usr/bin/prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (directory / "said").open("wb") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_prometheus_scrapes_counters_and_histograms(
    packages: Tree, backend: vu.Backend, tmp_path: Path
) -> None:
    target = backend.metrics_address
    assert target is not None
    with scraping(packages, tmp_path, target) as prometheus:
        assert eventually(lambda: prometheus.value("up") == 1, PATIENCE)
        for op in ("read", "write"):
            query = f'sum(vhost_user_requests_total{{op="{op}",status="ok"}})'
            assert prometheus.value(query) == 16
        ((labels, bound),) = prometheus.ask(
            "histogram_quantile(0.5, sum by (le) (vhost_user_request_seconds_bucket))"
        )
        assert (labels, 0 < bound < PATIENCE) == ({}, True)
        ((labels, value),) = prometheus.ask("vhost_user_build_info")
        assert (labels["class"], labels["version"], value) == ("RamDisk", vu.__version__, 1)
