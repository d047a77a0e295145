"""A stand-in for the Hugging Face hub on the loopback interface: one repository at one revision; it can break off."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves the files of a folder as REPO at REVISION; the next answer of a file in `cut` breaks
    off half-way, one in `gone` is listed but cannot be had."""

    def __init__(self, repo: str, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.folder = repo, folder
        self.cut: set[str] = set()
        self.gone: set[str] = set()
        self.served: list[str] = []  # file of every answer with content

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            repo, what, revision = re.match(
                r"([^/]+/[^/]+)(?:/(\w+)/([^/]+))?", path.removeprefix("/api/models/")
            ).groups()
            if repo != self.server.repo:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if revision != REVISION:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            content = self.tree() if what == "tree" else self.listing()
            return self.answer(200, json.dumps(content).encode())
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        file = self.server.folder / rest.partition("/")[2]
        if repo != self.server.repo or not file.is_file() or file.name in self.server.gone:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": REVISION}
        first = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if first:
            start = int(first[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206, content[start:], headers, file.name)
        return self.answer(200, content, headers, file.name)

    def answer(self, status: int, content: bytes, headers: dict | None = None, name: str = "") -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if name:
            self.server.served.append(name)
        if name in self.server.cut:
            self.server.cut.discard(name)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            self.wfile.write(content)

    def tree(self) -> list[dict]:
        siblings = self.listing()["siblings"]
        return [
            {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": "0" * 40}
            | ({"lfs": {"oid": sibling["lfs"]["sha256"], **sibling["lfs"]}} if "lfs" in sibling else {})
            for sibling in siblings
        ]

    def listing(self) -> dict:
        siblings = []
        for path in sorted(path for path in self.server.folder.rglob("*") if path.is_file()):
            content, sibling = path.read_bytes(), {"rfilename": path.relative_to(self.server.folder).as_posix()}
            if path.suffix in (".bin", ".safetensors"):  # large files, whose digests the hub knows
                sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            siblings.append(sibling | {"size": len(content)})
        return {"id": self.server.repo, "sha": REVISION, "siblings": siblings, "tags": [], "private": False}


@contextmanager
def serve(repo: str, folder: Path) -> Iterator[Hub]:
    """Run a hub until the block ends."""
    hub = Hub(repo, folder)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
