"""A local stand-in for a hub with one dataset: the requests of huggingface_hub's client, and no others."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """Serves a folder as the dataset "owner/name"; can stall in a transfer, and remembers what was sent.

    Attributes:
        stall_after: With a file of more bytes than this, stop there until `released`; None: never.
        stalled: A transfer has come to a halt.
        released: It may end.
        sent: Names of the files that were asked for, in order.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.stall_after: int | None = None
        self.stalled, self.released = threading.Event(), threading.Event()
        self.sent: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/api/datasets/owner/name/tree/"):
            files = sorted(file for file in self.server.folder.rglob("*") if file.is_file())
            entries: list[dict[str, Any]] = [
                {"type": "file", "path": str(file.relative_to(self.server.folder))} for file in files
            ]
            entries = [
                {**entry, "size": file.stat().st_size, "oid": ""} for entry, file in zip(entries, files, strict=True)
            ]
            self._send(200, json.dumps(entries).encode(), {}, body)
            return
        if path.startswith("/api/datasets/owner/name"):
            self._send(200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": []}).encode(), {}, body)
            return
        file = self.server.folder / path.removeprefix(f"/datasets/owner/name/resolve/{COMMIT}/")
        if not path.startswith("/datasets/owner/name/") or not file.is_file():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)
            return
        content = file.read_bytes()
        if body:
            self.server.sent.append(file.name)
        digest = hashlib.sha256(content).hexdigest()
        self._send(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        limit = self.server.stall_after
        if body and limit is not None and len(content) > limit:
            self.wfile.write(content[:limit])
            self.wfile.flush()
            self.server.stalled.set()
            self.server.released.wait(60)
            self.close_connection = True
        elif body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    """The server, in a thread."""
    with Hub(folder) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
