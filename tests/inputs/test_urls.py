"""Images behind URLs: fetched only if asked, only from public addresses, within limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from vlm2vec.backbones.prompts import PromptFormat
from vlm2vec.errors import InputError
from vlm2vec.inputs import urls
from vlm2vec.inputs.urls import downloaded, fetch, is_public
from vlm2vec.inputs.user_lists import make_items

CONTENT = b"the bytes of an image"


class Server(ThreadingHTTPServer):
    """Answers by path; remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.ended = threading.Event()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}/{path}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.asked.append(path)
        targets = {
            "moved": self.server.url("a.png"),
            "file": "file:///etc/hostname",
            "ftp": "ftp://127.0.0.1/a.png",
            "private": self.server.url("a.png", "127.0.0.2"),
            "circle": self.server.url("circle"),
        }
        if path in targets:
            self.send_response(302)
            self.send_header("Location", targets[path])
            self.end_headers()
        elif path == "missing":
            self.send_error(404)
        else:
            self.send_response(200)
            if path not in ("endless", "drip"):
                self.send_header("Content-Length", str({"large": 1 << 40, "short": 99}.get(path, len(CONTENT))))
            self.end_headers()
            self.wfile.write(CONTENT)
            while path in ("endless", "drip") and not self.server.ended.is_set():
                try:
                    self.wfile.write(b"x" * (1 << 16 if path == "endless" else 1))
                except OSError:
                    break
                if path == "drip":
                    self.server.ended.wait(0.02)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """On this machine, at the only address that counts as public."""
    monkeypatch.setattr(urls, "is_public", lambda address: address == "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.ended.set()
        server.shutdown()
        thread.join()


def items_of(*sources: Any) -> Any:
    return make_items(None, list(sources), PromptFormat(), allow_urls=True)


def test_every_url_is_fetched_once_into_a_file_that_is_removed(server: Server, tmp_path: Path) -> None:
    first, second = server.url("a.png"), server.url("moved")
    items = items_of(first, second, b"own bytes", first)
    with downloaded(items) as local:
        sources = [item.images[0].source for item in local]
        assert [Path(str(sources[place])).read_bytes() for place in (0, 1, 3)] == [CONTENT] * 3
        assert sources[0] == sources[3] != sources[1]
        assert sources[2] == b"own bytes"
        assert [item.images[0].name for item in local] == [first, second, "<bytes>", first]
    assert not any(Path(str(sources[place])).parent.exists() for place in (0, 1, 3))
    assert sorted(server.asked) == ["a.png", "a.png", "moved"]  # the second one behind the redirect


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("file", "cannot be fetched .*'file:///etc/hostname' is not allowed"),
        ("ftp", "ftp://127.0.0.1/a.png: only http and https"),
        ("private", "127.0.0.2 has the address 127.0.0.2, which is not public"),
        ("circle", "cannot be fetched .*redirect"),
        ("missing", "cannot be fetched .*404"),
        ("large", "more than 1 MiB, which is too large for an image"),
        ("endless", "more than 1 MiB, which is too large for an image"),
        ("short", "the connection ended after 21 of 99 bytes"),
        ("drip", "not complete after 0.5 seconds"),
    ],
)
def test_what_is_not_fetched(path: str, reason: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "MAX_DOWNLOAD_BYTES", 1 << 20)
    if path == "drip":
        monkeypatch.setattr(urls, "TIME_LIMIT", 0.5)
    with pytest.raises(InputError, match=reason) as refusal, downloaded(items_of(b"fine", server.url(path))):
        pass
    assert str(refusal.value).startswith(f"item 1: {server.url(path)}: ")
    assert "\n" not in str(refusal.value)


def test_a_host_that_takes_a_connection_and_says_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit also holds where TLS waits for the other side."""
    monkeypatch.setattr(urls, "TIME_LIMIT", 0.5)
    monkeypatch.setattr(urls, "SILENCE_LIMIT", 60.0)
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/a.png"
        with pytest.raises(InputError, match=f"{url}: not complete after 0.5 seconds"):
            fetch(url, tmp_path / "a")
    assert time.monotonic() - began < 30  # not until it was silent for too long


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "localhost", "[::ffff:127.0.0.1]"])
def test_this_machine_is_never_asked(
    host: str, server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(urls, "is_public", is_public)
    with pytest.raises(InputError, match="which is not public; download the image yourself"):
        fetch(server.url("a.png", host), tmp_path / "a")
    assert server.asked == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        *(
            (address, False)
            for address in (
                *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"),
                *("224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fec0::1", "ff02::1"),
                *("::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::1"),
            )
        ),
    ],
)
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(address) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/hostname", "only http and https"),
        ("ftp://host/a.png", "only http and https"),
        ("http:///a.png", "a URL without a host"),
        ("http://user:secret@host/a.png", "a URL with a user name or password in it is not fetched"),
        ("http://host:port/a.png", "not a valid URL"),
    ],
)
def test_urls_that_are_refused_before_anything_is_asked(url: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"item 0: .*{reason}") as refusal:
        items_of(url)
    assert "secret" not in str(refusal.value)


def test_urls_are_taken_only_when_asked() -> None:
    with pytest.raises(
        InputError, match=r"item 1: HTTPS://host/a.png: a URL, which is fetched only if allow_urls=True"
    ):
        make_items(None, ["a.png", "HTTPS://host/a.png"], PromptFormat())
