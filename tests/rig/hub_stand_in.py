"""A stand-in for the Hugging Face Hub: a local server with the endpoints that an upload of a folder needs."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_test_token"
USER = "somebody"


@dataclass
class Repository:
    """One repository; `branches` hold files by path."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})


@dataclass
class HubStandIn:
    """What the server holds.

    Attributes:
        endpoint: Its address.
        repositories: By name.
        blobs: Contents of large files by their SHA-256.
        requests: Method and path of each request, in order.
        broken: Requests whose path matches this are refused; None: none.
    """

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: str | None = None

    def create(self, body: Any) -> tuple[int, Any]:
        """A new repository."""
        name = f"{body.get('organization') or USER}/{body['name']}"
        address = {"url": f"{self.endpoint}/{name}"}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", **address}
        self.repositories[name] = Repository(body.get("visibility") == "private" or bool(body.get("private")))
        return 200, address

    def validate(self, body: Any) -> tuple[int, Any]:
        """The metadata of a card."""
        metadata = yaml.safe_load(body["content"].split("---\n")[1])
        return (200, {}) if isinstance(metadata, dict) else (400, {"errors": [{"message": "no metadata"}]})

    def preupload(self, body: Any) -> tuple[int, Any]:
        """Which files are large."""
        large = (".safetensors", "tokenizer.json")
        modes = {each["path"]: "lfs" if each["path"].endswith(large) else "regular" for each in body["files"]}
        return 200, {
            "files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        }

    def batch(self, body: Any) -> tuple[int, Any]:
        """Where large files go."""
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.endpoint}/blobs/{each['oid']}"}}}
            for each in body["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def commit(self, name: str, branch: str, data: bytes) -> tuple[int, Any]:
        """Files that appear and vanish together."""
        files = self.repositories[name].branches[branch]
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/1", "commitOid": "1" * 40}

    def answer(self, path: str, data: bytes) -> tuple[int, Any]:
        """The status and the content for a request."""
        if self.broken is not None and re.search(self.broken, path):
            return 403, {"error": "the stand-in refuses this"}
        if found := re.fullmatch(r"/blobs/(\w+)", path):
            assert sha256(data).hexdigest() == found[1]
            self.blobs[found[1]] = data
            return 200, {}
        routes: list[tuple[str, Callable[..., tuple[int, Any]]]] = [
            (r"/api/whoami-v2", lambda: (200, {"name": USER, "type": "user", "orgs": []})),
            (r"/api/repos/create", lambda: self.create(json.loads(data))),
            (r"/api/validate-yaml", lambda: self.validate(json.loads(data))),
            (r"/(.+)\.git/info/lfs/objects/batch", lambda _: self.batch(json.loads(data))),
            (r"/api/models/(.+)/preupload/.+", lambda _: self.preupload(json.loads(data))),
            (r"/api/models/(.+)/commit/(.+)", lambda name, branch: self.commit(name, branch, data)),
            (r"/api/models/(.+)/branch/(.+)", self.branch),
            (r"/api/models/(.+)/tree/(.+)", self.tree),
            (r"/api/models/([^/]+/[^/]+)", lambda name: (200, {"id": name, **vars(self.repositories[name])})),
        ]
        for pattern, reply in routes:
            if found := re.fullmatch(pattern, path):
                return reply(*map(unquote, found.groups()))
        return 404, {"error": f"the stand-in does not know {path}"}

    def branch(self, name: str, branch: str) -> tuple[int, Any]:
        """A new branch, with the files of main."""
        branches = self.repositories[name].branches
        if branch in branches:
            return 409, {"error": "Reference already exists"}
        branches[branch] = dict(branches["main"])
        return 200, {}

    def tree(self, name: str, branch: str) -> tuple[int, Any]:
        """The files of a branch."""
        files = self.repositories[name].branches[branch]
        return 200, [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()]


@contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """A server on a free port of this machine, until the block ends."""
    hub = HubStandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            path = urlsplit(self.path).path
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.requests.append(f"{self.command} {path}")
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}" or path.startswith("/blobs/")
            status, content = hub.answer(path, data) if known else (401, {"error": "Invalid credentials"})
            body = json.dumps(content, default=str).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = reply  # noqa: N815 - the server calls them so

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
