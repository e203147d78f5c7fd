"""Downloads images from URLs if the caller allows it: http and https, public addresses, limited size and time."""

from __future__ import annotations

import http.client
import ipaddress
import re
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO
from urllib import error, request
from urllib.parse import quote, urlsplit, urlunsplit

from vlm2vec.errors import InputError
from vlm2vec.inputs.items import EncodeItem, errors_of
from vlm2vec.item_rules import shorten

MAX_DOWNLOAD_BYTES = 1 << 26  # limit for one image; photographs of 80 megapixels are smaller
SILENCE_LIMIT = 10.0  # seconds without a byte
TIME_LIMIT = 60.0  # seconds for one image, including its redirects
_MAX_REDIRECTS = 5
_THREADS = 8
_PIECE = 1 << 16
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SHOWN = 200  # number of characters of a URL in messages


def is_url(source: object) -> bool:
    """Whether an image's source is a URL of any scheme, and not a path."""
    return isinstance(source, str) and _URL.match(source) is not None


def refuse_url(url: str, allow_urls: bool) -> None:
    """Refuses a URL if URLs are not allowed, or if it must not be fetched.

    Raises:
        InputError: URLs are not allowed, the scheme is not http or https, or the URL has no host, or a password.
    """
    shown = shorten(url, _SHOWN)
    try:
        parts = urlsplit(url)
        host, has_user, _ = parts.hostname, "@" in parts.netloc, parts.port
    except ValueError as reason:
        raise InputError(f"{shown}: not a valid URL ({reason})") from reason
    if parts.scheme.lower() not in ("http", "https"):
        if allow_urls:
            raise InputError(f"{shown}: only http and https URLs are fetched; pass a file's path or its bytes")
        return  # it is read as a path
    if not allow_urls:
        raise InputError(f"{shown}: a URL, which is fetched only if allow_urls=True is passed to VLM2Vec.encode")
    if not host:
        raise InputError(f"{shown}: a URL without a host")
    if has_user:
        raise InputError("a URL with a user name or password in it is not fetched; download the image yourself")


@contextmanager
def downloaded(items: Sequence[EncodeItem]) -> Iterator[list[EncodeItem]]:
    """Downloads the images of items that are URLs, each distinct URL once, and yields the items with file paths.

    The files are temporary: they are removed when the context ends.

    Raises:
        InputError: See `fetch`; the message names the first item that has the URL.
    """
    urls = dict.fromkeys(str(image.source) for item in items for image in item.images if is_url(image.source))
    with tempfile.TemporaryDirectory(prefix="vlm2vec-urls-") as folder, ThreadPoolExecutor(_THREADS) as pool:
        files = {url: Path(folder) / str(number) for number, url in enumerate(urls)}
        fetched = {url: pool.submit(fetch, url, file) for url, file in files.items()}
        try:
            for item in items:
                for image in item.images:
                    if is_url(image.source):
                        with errors_of(item.name):
                            fetched[str(image.source)].result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        yield [
            replace(
                item,
                images=tuple(
                    replace(image, source=files[str(image.source)]) if is_url(image.source) else image
                    for image in item.images
                ),
            )
            for item in items
        ]


def fetch(url: str, file: Path) -> None:
    """Downloads an http or https URL to a file.

    It connects only to public addresses, also after redirects: a URL in untrusted data must not read a cloud's
    metadata service or a machine of the local network. It connects to the very address that was checked, so that a
    second DNS answer cannot change it (DNS rebinding). Proxies are not used, because they would hide the address.

    Raises:
        InputError: See `refuse_url`; or the address is private, there is no answer, an HTTP error, more than
            `MAX_DOWNLOAD_BYTES`, no byte for `SILENCE_LIMIT` seconds, or more than `TIME_LIMIT` seconds in total.
    """
    refuse_url(url, allow_urls=True)
    shown = shorten(url, _SHOWN)
    with _Watch(TIME_LIMIT) as watch:
        try:
            asked = request.Request(_quoted(url), headers={"User-Agent": "vlm2vec-deepspeed"})
            with _opener(watch).open(asked, timeout=SILENCE_LIMIT) as response, file.open("wb") as written:
                _copy(response, written, watch)
        except InputError as reason:
            raise InputError(f"{shown}: {reason}") from reason
        except Exception as reason:  # urllib, http.client and ssl raise a dozen classes of exceptions
            if watch.is_over:
                raise InputError(f"{shown}: not complete after {TIME_LIMIT:g} seconds") from reason
            if isinstance(reason, error.URLError) and isinstance(reason.reason, InputError):
                raise InputError(f"{shown}: {reason.reason}") from reason
            text = " ".join(str(reason).split()) or type(reason).__name__
            raise InputError(f"{shown}: cannot be fetched ({shorten(text, _SHOWN)})") from reason
        if watch.is_over:  # a connection that is shut down looks like the end of a response without a length
            raise InputError(f"{shown}: not complete after {TIME_LIMIT:g} seconds")


def is_public(address: str) -> bool:
    """Whether an IP address is public, including IPv4 addresses embedded in IPv6 ones."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inside = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo or (None, None))[1]
        if parsed in _NAT64:
            inside = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inside is not None:
            return is_public(str(inside))
        if parsed.is_site_local:
            return False
    return parsed.is_global and not parsed.is_multicast and not parsed.is_reserved


class _Watch:
    """Closes a download's connections when its time is up, even while a read blocks."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Watch:
        self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """Connects to a public address of the host.

        Raises:
            InputError: One of the host's addresses is not public.
            OSError: No address could be connected to.
        """
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            if not is_public(address):
                raise InputError(
                    f"{host} has the address {address}, which is not public; download the image yourself and pass its "
                    "path or bytes"
                )
        failure: OSError = TimeoutError("no time left")
        deadline = time.monotonic() + timeout
        for address in addresses:
            left = deadline - time.monotonic()
            if self.is_over or left <= 0:
                break
            try:
                connection = socket.create_connection((address, port), left)
            except OSError as reason:
                failure = reason
                continue
            connection.settimeout(timeout)
            with self._lock:
                # A duplicate of the socket: wrapping it in TLS detaches the first handle.
                self._sockets.append(connection.dup())
            return connection
        raise failure

    def _end(self) -> None:
        self.is_over = True
        with self._lock:
            for each in self._sockets:
                with suppress(OSError):  # closed by the other side
                    each.shutdown(socket.SHUT_RDWR)


def _opener(watch: _Watch) -> request.OpenerDirector:
    """An opener only for http and https: without proxies, and without files, FTP and data URLs as redirect targets."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = watch.connect(self.host, self.port, float(self.timeout or SILENCE_LIMIT))

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            plain = watch.connect(self.host, self.port, float(self.timeout or SILENCE_LIMIT))
            self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)

    class PlainHandler(request.HTTPHandler):
        def http_open(self, req: request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(request.HTTPSHandler):
        def https_open(self, req: request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req)

    class Redirects(request.HTTPRedirectHandler):
        max_redirections = _MAX_REDIRECTS

        def redirect_request(self, req: request.Request, fp: Any, *others: Any) -> request.Request | None:
            refuse_url(others[-1], allow_urls=True)
            return super().redirect_request(req, fp, *others)

    opener = request.OpenerDirector()
    for handler in (PlainHandler, SecureHandler, Redirects, request.HTTPDefaultErrorHandler, request.UnknownHandler):
        opener.add_handler(handler())
    opener.add_handler(request.HTTPErrorProcessor())
    return opener


def _copy(response: Any, file: BinaryIO, watch: _Watch) -> None:
    stated = response.headers.get("Content-Length", "")
    size = int(stated) if stated.isdecimal() and len(stated) < 20 else 0
    while size <= MAX_DOWNLOAD_BYTES and not watch.is_over:
        piece = response.read1(_PIECE)
        if not piece:
            if size and file.tell() < size:
                raise InputError(f"the connection ended after {file.tell()} of {size} bytes")
            return
        file.write(piece)
        size = max(size, file.tell())
    if size > MAX_DOWNLOAD_BYTES:
        raise InputError(f"more than {MAX_DOWNLOAD_BYTES >> 20} MiB, which is too large for an image")


def _quoted(url: str) -> str:
    """Percent-encodes spaces and non-ASCII characters in the path and query of a URL."""
    parts = urlsplit(url)
    safe = "%/:=&?~+!$,;'@()*[]"
    return urlunsplit(parts._replace(path=quote(parts.path, safe), query=quote(parts.query, safe), fragment=""))
