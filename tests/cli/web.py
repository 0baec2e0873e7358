"""A web server with ranges, for the example that reads a disk over HTTP."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


class File:
    """What the server has, and what it was asked for. RFC 9110, "Range Requests"."""

    def __init__(self, content: bytes, tag: str = '"1"') -> None:
        self.content = content
        self.tag = tag
        self.lock = threading.Lock()
        self.asked: list[tuple[int, int]] = []

    def answer(self, headers: dict[str, str]) -> Answer:
        """The answer to a GET with these headers."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", ""))
        if found is None or headers.get("If-Range", self.tag) != self.tag:
            return HTTPStatus.OK, {"ETag": self.tag}, self.content
        first, last = int(found[1]), int(found[2])
        with self.lock:
            self.asked.append((first, last + 1 - first))
        part = self.content[first : last + 1]
        place = f"bytes {first}-{first + len(part) - 1}/{len(self.content)}"
        return HTTPStatus.PARTIAL_CONTENT, {"ETag": self.tag, "Content-Range": place}, part


class Server(ThreadingHTTPServer):
    """Answers by ``respond``; counts connections, and closes each after an answer if told so."""

    daemon_threads = True

    def __init__(self, respond: Callable[[dict[str, str]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.connections = 0
        self.hangs_up = False

    def process_request(self, request: Any, address: Any) -> None:
        self.connections += 1
        super().process_request(request, address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/disk.img"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        status, headers, body = self.server.respond(dict(self.headers))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        # With no word of it to the client, as after a time limit.
        self.close_connection = self.server.hangs_up

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(respond: Callable[[dict[str, str]], Answer]) -> Iterator[Server]:
    """Serves until the block ends."""
    with Server(respond) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
