"""A Hub on this machine: the part of its HTTP interface that uploads and downloads use.

It keeps what it is sent, checks tokens and checksums, and can be down, deaf or slow.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

TOKEN = "hf_the_right_one"
USER = "someone"
LICENSES = ("apache-2.0", "mit", "other")


class StandIn:
    """The Hub's state, and what tests do to it."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.foreign: set[str] = set()  # repositories that USER can only read
        self.gated: set[str] = set()  # and those that nobody can
        self.objects: dict[str, bytes] = {}  # large files by checksum
        self.commits: list[tuple[str, dict[str, bytes]]] = []  # message, all files afterwards
        self.requests: list[str] = []
        self.large: tuple[str, ...] = (".safetensors", ".png")  # what goes the way of large files
        self.refused_commits: set[int] = set()  # by number, from 1
        self.commit_attempts = 0
        self.open = threading.Event()  # while it is cleared, commits are not answered
        self.open.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to take this for the Hub.

        Xet's protocol for large files is not imitated. Without large files the library's pipeline
        that is built on it is used all the same.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1" if self.large else "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def close(self) -> None:
        """Ends it: connections are refused from now on."""
        self.open.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hub.answer(self)

            do_GET = do_HEAD = do_PUT = do_POST

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Reads a request, and sends what `_respond` makes of it."""
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        path = request.path.split("?")[0]
        self.requests.append(f"{request.command} {path}")
        if "/resolve/" in path:
            repository, _, wanted = path.strip("/").partition("/resolve/")
            self._send(request, repository, *wanted.split("/", 1))
            return
        allowed = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        public = ("/objects/", "/api/validate-yaml", "/api/models/lab/")
        if allowed or path.startswith(public):
            status, content = self._respond(request.command, path, body)
        else:
            status, content = 401, {"error": "Invalid credentials in Authorization header"}
        data = json.dumps(content).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _send(
        self, request: BaseHTTPRequestHandler, repository: str, revision: str, file: str
    ) -> None:
        """Answers a download with the file, or with the Hub's code for why there is none."""
        content, files = b"", self.repositories.get(repository, {})
        if repository not in self.repositories:
            status, code = 401, "RepoNotFound"
        elif repository in self.gated:
            status, code = 403, "GatedRepo"
        elif revision != "main":
            status, code = 404, "RevisionNotFound"
        elif file not in files:
            status, code = 404, "EntryNotFound"
        else:
            status, code, content = 200, "", files[file]
        request.send_response(status)
        request.send_header("X-Error-Code", code)
        request.send_header("X-Repo-Commit", "0" * 40)
        request.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)

    def _respond(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if method == "PUT" and parts[0] == "objects":
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.objects[parts[1]] = body
            return 200, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"objects": [self._action(item) for item in json.loads(body)["objects"]]}
        name = "/".join(parts[2:4])
        if parts[:2] != ["api", "models"] or name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if parts[4:] == ["auth-check", "write"]:
            return (403, {"error": "no right to write"}) if name in self.foreign else (200, {})
        if parts[4:] == ["tree", "main"]:
            return 200, [{"type": "file", "path": file, "size": 1, "oid": "0"}
                         for file in self.repositories[name]]  # fmt: skip
        if parts[4:] == ["preupload", "main"]:
            return 200, {"files": [self._mode(name, file) for file in json.loads(body)["files"]]}
        if parts[4:] == ["commit", "main"]:
            return self._commit(name, [json.loads(line) for line in body.splitlines()])
        return 200, {"id": name, "sha": "0" * 40, "private": self.private[name]}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization'] or USER}/{wanted['name']}"
        url = {"url": f"{self.endpoint}/{name}"}
        if name in self.repositories:
            return (403, {"error": "not yours"}) if name in self.foreign else (409, url)
        self.repositories[name] = {}
        self.private[name] = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        return 200, url

    def _validate(self, content: str) -> tuple[int, Any]:
        header = yaml.safe_load(content.split("---\n")[1]) or {}
        if header.get("license", "mit") not in LICENSES:
            return 400, {"errors": [{"message": '"license" must be one of a list'}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _mode(self, name: str, file: dict[str, Any]) -> dict[str, Any]:
        known = self.repositories[name].get(file["path"])
        large = file["path"].endswith(self.large)
        kind = hashlib.sha256 if large else _git_hash
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
            "oid": None if known is None else kind(known).hexdigest(),
        }

    def _action(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if wanted["oid"] in self.objects:
            return wanted
        href = f"{self.endpoint}/objects/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href, "header": {}}}}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        self.commit_attempts += 1
        refused = self.commit_attempts in self.refused_commits
        self.open.wait()
        if refused:
            return 403, {"error": "no commits today"}
        files = dict(self.repositories[name])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                files[value["path"]] = self.objects[value["oid"]]
        self.repositories[name] = files
        self.commits.append((lines[0]["value"]["summary"], files))
        oid = f"{len(self.commits):040x}"
        return 200, {"commitUrl": f"{self.endpoint}/{name}/commit/{oid}", "commitOid": oid}


def _git_hash(data: bytes) -> Any:
    return hashlib.sha1(b"blob %d\0" % len(data) + data)


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """A Hub that runs as long as the context."""
    hub = StandIn()
    try:
        yield hub
    finally:
        hub.close()


def take_it_for_the_hub() -> None:
    """Called in a launched process, whose server had imported huggingface_hub long before.

    A process that starts afresh, such as an upload, reads the same from its environment.
    """
    from huggingface_hub import constants

    constants.ENDPOINT = os.environ["HF_ENDPOINT"]
    constants.HF_HUB_OFFLINE = False


def without_patience() -> None:
    """As above, and a push has only a moment to finish when the run is asked to stop."""
    import modules.export.publisher

    take_it_for_the_hub()
    modules.export.publisher.GRACE = 0.3
