"""A Hugging Face Hub on this machine: the few endpoints that reading and writing a repository
take."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest


@dataclass
class Hub:
    """Repositories: name -> its commits, oldest first, each the bytes of its files.

    `refused` maps a name to an HTTP status and an error code that every call about it gets;
    `requests` are the calls that came, and `read_only` refuses whatever writes.
    """

    url: str = ""
    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    read_only: bool = False

    def files(self, name: str) -> dict[str, bytes]:
        return self.repositories[name][-1]


def commit_of(name: str, number: int) -> str:
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(self._read)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer(self._write)

    def _answer(self, answer: Any) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer(path.strip("/").split("/"), body)

    def _send(self, status: int, body: bytes | Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, status: int, code: str) -> None:
        self._send(status, {"error": code}, X_Error_Code=code, X_Error_Message=code)

    def _commit(self, name: str, revision: str) -> int | None:
        commits = self.hub.repositories[name]
        shas = [commit_of(name, number) for number in range(len(commits))]
        if revision == "main":
            return len(commits) - 1
        return shas.index(revision) if revision in shas else None

    def _read(self, parts: list[str], body: bytes) -> None:
        offset = 2 if parts[:2] == ["api", "models"] else 0
        name, rest = "/".join(parts[offset : offset + 2]), parts[offset + 2 :]
        if name in self.hub.refused:
            return self._fail(*self.hub.refused[name])
        if name not in self.hub.repositories:
            return self._fail(404, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        number = self._commit(name, revision)
        if number is None:
            return self._fail(404, "RevisionNotFound")
        sha, files = commit_of(name, number), self.hub.repositories[name][number]
        if rest[:1] == ["resolve"]:
            file = "/".join(rest[2:])
            if file not in files:
                return self._fail(404, "EntryNotFound")
            etag = f'"{hashlib.sha1(files[file]).hexdigest()}"'
            return self._send(200, files[file], ETag=etag, X_Repo_Commit=sha)
        if rest[:1] == ["tree"]:
            entries = [
                {
                    "type": "file",
                    "path": path,
                    "size": len(data),
                    "oid": hashlib.sha1(data).hexdigest(),
                }
                for path, data in files.items()
            ]
            return self._send(200, entries)
        siblings = [{"rfilename": path} for path in files]
        self._send(200, {"id": name, "modelId": name, "sha": sha, "siblings": siblings})

    def _write(self, parts: list[str], body: bytes) -> None:
        if parts == ["api", "validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        if self.hub.read_only:
            return self._fail(403, "Forbidden")
        if parts == ["api", "repos", "create"]:
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            status = 409 if name in self.hub.repositories else 200
            self.hub.repositories.setdefault(name, [{}])
            return self._send(status, {"url": f"{self.hub.url}/{name}", "name": name})
        name, action = "/".join(parts[2:4]), parts[4]
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in files
            ]
            return self._send(200, {"files": modes})
        lines = [json.loads(line) for line in body.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        commits = self.hub.repositories[name]
        commits.append({**commits[-1], **added})
        sha = commit_of(name, len(commits) - 1)
        url = f"{self.hub.url}/{name}/commit/{sha}"
        self._send(200, {"commitUrl": url, "commitOid": sha, "hookOutput": ""})


@contextlib.contextmanager
def fake_hub() -> Iterator[Hub]:
    """A hub that listens on a port of its own while the block runs."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def use_hub(patch: pytest.MonkeyPatch, url: str, cache: object, *, offline: bool = False) -> None:
    """Let huggingface_hub talk to `url`, and keep its cache apart: what its environment variables
    do before it is imported."""
    from huggingface_hub import constants

    patch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setenv("HF_TOKEN", "hf_fake")
    patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
