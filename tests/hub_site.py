"""A hub on 127.0.0.1 with the three endpoints that a download asks: a repository's page, its files, their bytes."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from local_site import QuietHandler

COMMIT = "c" * 40
#: files of at least this size are "large": known by sha256, as hubs do with what git does not hold itself
LARGE = 256


@dataclass
class Repository:
    """Files by path, and how the server misbehaves."""

    files: dict[str, bytes]
    licence: str | None = "apache-2.0"
    gated: bool = False
    #: path -> bytes after which the connection is cut, once per number
    cuts: dict[str, list[int]] = field(default_factory=dict)
    #: path -> what is sent in place of the content
    forged: dict[str, bytes] = field(default_factory=dict)
    #: path -> answered with this status
    statuses: dict[str, int] = field(default_factory=dict)


class HubSite(ThreadingHTTPServer):
    """`repositories` by name; `log` holds (method, path, Range header)."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.log: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fetched(self, path: str) -> list[str | None]:
        """Range headers of the requests for a file's bytes."""
        return [span for method, asked, span in self.log if method == "GET" and asked.endswith(f"/{path}")]


class _Handler(QuietHandler):
    server: HubSite  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802 (the parent's name for it)
        path = self.path.partition("?")[0]
        self.server.log.append((self.command, path, self.headers["Range"]))
        if found := re.fullmatch(r"/api/models/(\w+/[\w.-]+)/(revision|tree)/(\w+)", path):
            repository = self.server.repositories.get(found[1])
            if repository is None:
                self.refuse(404, "RepoNotFound")
            elif found[3] not in ("main", COMMIT):
                self.refuse(404, "RevisionNotFound")
            else:
                self.send_json(page(found[1], repository) if found[2] == "revision" else tree(repository))
        elif found := re.fullmatch(rf"/(\w+/[\w.-]+)/resolve/{COMMIT}/(.+)", path):
            self.send_file(self.server.repositories[found[1]], found[2])
        else:
            self.refuse(404, "EntryNotFound")

    def do_HEAD(self):  # noqa: N802 (the parent's name for it)
        found = re.fullmatch(rf"/(\w+/[\w.-]+)/resolve/{COMMIT}/(.+)", self.path)
        body = self.server.repositories[found[1]].files[found[2]]  # pyright: ignore[reportOptionalSubscript]
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{digest(body)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()

    def send_file(self, repository: Repository, path: str) -> None:
        if repository.gated:
            self.refuse(403, "GatedRepo")
            return
        if path in repository.statuses:
            self.refuse(repository.statuses[path], "")
            return
        body = repository.forged.get(path, repository.files[path])
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if self.headers["Range"] else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        cuts = repository.cuts.get(path)
        if cuts:
            self.wfile.write(body[start : cuts.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body[start:])

    def send_json(self, data: object) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def page(name: str, repository: Repository) -> dict[str, object]:
    """What a hub says of a repository."""
    card = {"license": repository.licence} if repository.licence else {}
    return {"id": name, "sha": COMMIT, "cardData": card, "tags": [], "siblings": [], "private": False}


def tree(repository: Repository) -> list[dict[str, object]]:
    """A hub's list of files, with sizes and digests."""
    return [entry(path, body) for path, body in repository.files.items()]


def entry(path: str, body: bytes) -> dict[str, object]:
    """One file of the list."""
    found: dict[str, object] = {"type": "file", "path": path, "size": len(body), "oid": git_hash(body)}
    if len(body) >= LARGE:
        found["lfs"] = {"oid": digest(body), "size": len(body), "pointerSize": 134}
    return found


def digest(body: bytes) -> str:
    """What a hub knows a file by."""
    return hashlib.sha256(body).hexdigest() if len(body) >= LARGE else git_hash(body)


def git_hash(body: bytes) -> str:
    """The name that git gives a blob."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
