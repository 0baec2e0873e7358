"""A disk that is read over HTTP: a pool of threads, and each request answered as its data come.

Its file is not called `http.py`, which would hide the standard library's module of that name.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPSConnection
from urllib.parse import urlsplit

import vhost_user as vu

SCHEMES = {"http": HTTPConnection, "https": HTTPSConnection}
PARTIAL_CONTENT = 206


class HttpDisk(vu.BlockDevice):
    """The file at ``url``, read-only. Its server has to take ranges, as nearly all do."""

    def __init__(self, url: str, threads: int = 32, timeout: float = 10.0) -> None:
        self.url = urlsplit(url)
        if self.url.scheme not in SCHEMES:
            raise ValueError(f"url is http://... or https://..., not {url!r}")
        self.timeout = timeout
        self.idle: deque[HTTPConnection] = deque()
        self.version: dict[str, str] = {}
        _, headers = self.fetch(0, 1)
        # A file that is replaced would be mixed with the former one: the server then answers
        # with all of it instead of a part.
        tag = headers["ETag"] or ""
        version = headers["Last-Modified"] if not tag or tag.startswith("W/") else tag
        self.version = {"If-Range": version} if version else {}
        size = int(headers["Content-Range"].rpartition("/")[2])
        super().__init__(size=size - size % 512, read_only=True)
        self.pool = ThreadPoolExecutor(threads, "http")
        self.on_stop()

    def on_batch(self, batch: Sequence[vu.BlockRequest]) -> None:
        """Keeps the requests and returns: those that come next do not wait for their data."""
        for request in batch:
            self.pool.submit(self.answer, request.defer())

    def on_stop(self) -> None:
        """Closes the connections: no guest uses the disk now."""
        while self.idle:
            self.idle.pop().close()

    def answer(self, request: vu.BlockRequest) -> None:
        """Fetches what a request asks for, on a thread of the pool."""
        try:
            data, _ = self.fetch(request.offset, request.length)
            request.copy_from(data)
            request.complete()
        except vu.StaleRequestError:
            pass  # Its queue has stopped meanwhile, and nobody waits for it any more.
        except (OSError, HTTPException) as error:
            request.fail(error)

    def fetch(self, offset: int, length: int) -> tuple[bytes, HTTPMessage]:
        """A part of the file. ``OSError`` if the server sends anything else."""
        try:
            return self.get(offset, length)
        except (ConnectionError, HTTPException):
            # The server had closed a connection that was left open, and others with it.
            return self.get(offset, length, fresh=True)

    def get(self, offset: int, length: int, *, fresh: bool = False) -> tuple[bytes, HTTPMessage]:
        """The same over a connection that was left open, or a new one. No error leaves one open."""
        try:
            connection = None if fresh else self.idle.pop()
        except IndexError:
            connection = None
        if connection is None:
            connection = SCHEMES[self.url.scheme](self.url.netloc, timeout=self.timeout)
        wanted = {"Range": f"bytes={offset}-{offset + length - 1}", **self.version}
        path = self.url._replace(scheme="", netloc="", fragment="").geturl() or "/"
        try:
            connection.request("GET", path, headers=wanted)
            response = connection.getresponse()
            if response.status != PARTIAL_CONTENT:
                raise OSError(f"{path}: asked for a part, the server answers {response.status}")
            data = response.read(length)
            if len(data) < length or response.read(1):
                raise OSError(f"{path}: asked for {length} bytes, the server sends others")
        except BaseException:
            connection.close()
            raise
        self.idle.append(connection)
        return data, response.headers


if __name__ == "__main__":
    vu.serve(HttpDisk("http://127.0.0.1:8000/disk.img"), socket="http.sock")
