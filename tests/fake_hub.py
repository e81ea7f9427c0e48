"""A hub on 127.0.0.1 that speaks the few endpoints of a push and a pull."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """Repositories in memory, and what went wrong on purpose."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.created: list[dict[str, Any]] = []
        self.status = 0
        """Answer everything with it; 0: work."""
        self.cut = False
        """Break off in the middle of each file."""
        self.endless = False
        """Send each file again and again, whatever its size is said to be."""
        self.sent = 0
        self.asked: list[str] = []
        """Files, in order."""
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets: the second would wait 40 ms

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self) -> bool:
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.server.status:
            self._answer({"error": "on purpose"}, self.server.status)
        return bool(self.server.status)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused():
            return
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.repositories.setdefault(name, {})
            self._answer({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        elif "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in path:
            name = "/".join(path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    data = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[name][entry["value"]["path"]] = data
                elif entry["key"] == "deletedFile":
                    del self.server.repositories[name][entry["value"]["path"]]
            commit = f"{self.server.url}/{name}/commit/{COMMIT}"
            self._answer({"success": True, "commitOid": COMMIT, "commitUrl": commit})
        else:
            self._answer({}, 200)

    def do_GET(self) -> None:
        if self._refused():
            return
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.server.repositories.get(name)
        if files is None:
            self._answer({"error": "Repository not found"}, 404)
        elif parts[0] == "api" and "tree" in parts:
            tree = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in files.items()
            ]
            self._answer(tree)
        elif parts[0] == "api":
            siblings = [{"rfilename": path} for path in files]
            self._answer({"id": name, "sha": COMMIT, "siblings": siblings, "private": True})
        else:
            self._send(files, "/".join(parts[4:]))

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _send(self, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = files[path]
        self.server.asked.append(path)
        if self.server.endless:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(data)
                    self.server.sent += len(data)
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if self.server.cut else data)
            if self.server.cut:
                self.close_connection = True


@contextlib.contextmanager
def run_hub() -> Iterator[Hub]:
    """A running hub."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
