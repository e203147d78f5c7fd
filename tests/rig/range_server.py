"""A local http server that answers range requests and counts them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Store:
    """A served folder.

    Attributes:
        url: Of the folder.
        ranges: (path, start, end) of each range that was asked for.
        failures: Number of coming requests that are answered with an error.
        whole: Answers every request with the whole file, as servers without ranges do.
    """

    url: str
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    failures: int = 0
    whole: bool = False


@contextmanager
def served(folder: Path) -> Iterator[Store]:
    """Serves a folder until the block is left."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with lock:
                fails = store.failures > 0
                store.failures -= fails
            path = folder / self.path.lstrip("/")
            if fails or not path.is_file():
                self.answer(503 if fails else 404, b"")
                return
            content, status = path.read_bytes(), 200
            asked = self.headers.get("Range")
            if asked and not store.whole:
                start, end = (int(number) for number in asked.removeprefix("bytes=").split("-"))
                store.ranges.append((self.path, start, end + 1))
                content, status = content[start : end + 1], 206
            self.answer(status, content)

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    store = Store(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
