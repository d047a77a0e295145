"""A web server on this machine that serves files, answers as the Hugging Face Hub, and misbehaves when told to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Loopback:
    """What the server serves and what it has seen.

    files: path -> content.  hub: "datasets/owner/name" -> {path: content}.  faults: path -> misbehaviours, used up one
    per request: ("cut", n) closes the line after n bytes, ("status", code, headers), ("redirect", path),
    ("ignore range",), ("short range", n) answers a range with n bytes, ("html",).
    answers: path -> function of a request's body and headers, for POST.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.hub: dict[str, dict[str, bytes]] = {}
        self.faults: dict[str, list[tuple[Any, ...]]] = {}
        self.answers: dict[str, Callable[[Any, Any], tuple[int, dict[str, str], bytes]]] = {}
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.url = ""

    def requests(self, path: str) -> list[dict[str, str]]:
        """Headers of the GET requests for a path."""
        return [headers for method, seen, headers in self.seen if (method, seen) == ("GET", path)]


@contextmanager
def serve() -> Iterator[Loopback]:
    """A running server."""
    loopback = Loopback()

    class Handler(_Handler):
        state = loopback

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    loopback.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield loopback
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Loopback

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.seen.append((self.command, path, dict(self.headers)))
        faults = self.state.faults.get(path) if self.command == "GET" else None
        fault = faults.pop(0) if faults else ("none",)
        if fault[0] == "status":
            self._send(fault[1], b"busy", fault[2] if len(fault) > 2 else {})
        elif fault[0] == "redirect":
            self._send(302, b"", {"Location": fault[1]})
        elif fault[0] == "html":
            self._send(200, b"<html>log in</html>", {"Content-Type": "text/html; charset=utf-8"})
        elif path in self.state.files:
            self._file(self.state.files[path], fault)
        else:
            self._hub(path, fault)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.seen.append(("POST", path, dict(self.headers)))
        if path in self.state.answers:
            code, headers, answer = self.state.answers[path](json.loads(body), self.headers)
            self._send(code, answer, headers)
        else:
            self._upload(unquote(path), body)

    def _send(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(code, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _file(self, content: bytes, fault: tuple[Any, ...], extra: dict[str, str] | None = None) -> None:
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        start, code = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        condition = self.headers.get("If-Range")
        if wanted and fault[0] != "ignore range" and condition in (None, tag):
            start, code = int(wanted[1]), 206
            if start >= len(content):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        body = content[start:][: fault[1] if fault[0] == "short range" else None]
        headers = {"ETag": tag, "Accept-Ranges": "bytes", **(extra or {})}
        if code == 206:
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        if fault[0] != "cut":
            return self._send(code, body, headers)
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body[: fault[1]])
        self.wfile.flush()
        self.close_connection = True

    # ---- the Hub ----

    def _hub(self, path: str, fault: tuple[Any, ...]) -> None:
        if match := re.fullmatch(r"/api/((?:datasets|models)/[^/]+/[^/]+)(?:/(revision|tree)/([^/]+)/?(.*))?", path):
            name, verb, revision, below = match.groups()
            if name not in self.state.hub:
                return self._json({}, 404, {"X-Error-Code": "RepoNotFound"})
            if revision not in (None, "main", COMMIT):
                return self._json({}, 404, {"X-Error-Code": "RevisionNotFound"})
            files = self.state.hub[name]
            if verb == "tree":
                found = [file for file in sorted(files.items()) if not below or file[0].startswith(f"{below}/")]
                missing = {"X-Error-Code": "EntryNotFound"}
                return self._json([_entry(*file) for file in found]) if found else self._json({}, 404, missing)
            about = {"id": name.partition("/")[2], "sha": COMMIT, "private": False, "tags": [], "siblings": []}
            return self._json({**about, "downloads": 0, "likes": 0, "gated": False, "disabled": False})
        if match := re.fullmatch(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.state.hub.get(f"{match[1] or 'models'}/{match[2]}", {}).get(match[4])
            if content is not None and match[3] in ("main", COMMIT):
                return self._file(content, fault, {"X-Repo-Commit": COMMIT})
        return self._json({}, 404, {"X-Error-Code": "EntryNotFound"})

    def _upload(self, path: str, body: bytes) -> None:
        """Take part in an upload: make a repository of models, say that all files are sent inline, take a commit."""
        if path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about.get('organization') or 'me'}/{about['name']}"
            self.state.hub.setdefault(f"models/{name}", {})
            return self._json({"url": f"{self.state.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/(models/[^/]+/[^/]+)/(preupload|commit)/main", path):
            if match[2] == "preupload":
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                return self._json({"files": files})
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.state.hub[match[1]][line["value"]["path"]] = content
            return self._json({"commitUrl": f"{self.state.url}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        return self._json({}, 404)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
    if not path.endswith((".json", ".md")):  # the Hub keeps big files in LFS and tells their SHA-256
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry
