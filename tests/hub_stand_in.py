"""A stand-in for the hub's HTTP interface, as far as the real client asks for it: repositories in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

KEY = "hf_standin"


class Hub:
    """repos  id -> {name: content}, one commit each;  asked  every request, in order;
    ranges  parts of files that were asked for
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.ranges: list[str] = []
        self.address = ""

    def commit(self, hub_id: str) -> str:
        told = json.dumps({n: hashlib.sha1(c).hexdigest() for n, c in sorted(self.repos[hub_id].items())})
        return hashlib.sha1(told.encode()).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Nobody watches."""

        def _answer(self, value: Any, status: int = 200, **headers: str) -> None:
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in headers.items():
                self.send_header(name.replace("_", "-"), text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _missing(self, code: str) -> None:
            self._answer({"error": code}, 404, X_Error_Code=code)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            parts = path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                self._about("/".join(parts[2:4]), parts[4:])
                return
            hub_id = "/".join(parts[:2])
            if parts[2:3] != ["resolve"] or hub_id not in hub.repos:
                self._missing("RepoNotFound")
                return
            name = "/".join(parts[4:])
            if name not in hub.repos[hub_id]:
                self._missing("EntryNotFound")
                return
            content = hub.repos[hub_id][name]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            if (asked := self.headers.get("Range", "").removeprefix("bytes=")) and self.command == "GET":
                hub.ranges.append(f"{name} {asked}")
                first, last = map(int, asked.split("-"))
                content = content[first : last + 1]
            self._answer(content, X_Repo_Commit=hub.commit(hub_id), ETag=etag)

        def _about(self, hub_id: str, rest: list[str]) -> None:
            if hub_id not in hub.repos:
                self._missing("RepoNotFound")
                return
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in hub.repos[hub_id].items()
            ]
            if rest[:1] == ["tree"]:
                self._answer(files)
                return
            siblings = [{"rfilename": name} for name in hub.repos[hub_id]]
            self._answer({
                "_id": "0", "id": hub_id, "modelId": hub_id, "sha": hub.commit(hub_id), "siblings": siblings,
                "private": False, "tags": [], "downloads": 0, "likes": 0,
            })  # fmt: skip

        def do_POST(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            hub.asked.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                self._answer({"error": "Invalid username or password."}, 401)
                return
            parts = path.strip("/").split("/")
            if path == "/api/repos/create":
                told = json.loads(body)
                owner, name = told.get("organization"), told["name"]
                hub_id = f"{owner}/{name}" if owner else name
                known = hub_id in hub.repos
                hub.repos.setdefault(hub_id, {})
                self._answer({"url": f"{hub.address}/{hub_id}"}, 409 if known else 200)
            elif path == "/api/validate-yaml":
                self._answer({"errors": [], "warnings": []})
            elif parts[4:5] == ["preupload"]:
                asked = json.loads(body)["files"]
                self._answer({
                    "files": [
                        {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                        for each in asked
                    ]
                })  # fmt: skip
            elif parts[4:5] == ["commit"]:
                hub_id = "/".join(parts[2:4])
                for line in body.decode().splitlines():
                    told = json.loads(line)
                    if told["key"] == "file":
                        content = base64.b64decode(told["value"]["content"])
                        hub.repos[hub_id][told["value"]["path"]] = content
                oid = hub.commit(hub_id)
                self._answer({
                    "success": True, "commitOid": oid, "commitUrl": f"{hub.address}/{hub_id}/commit/{oid}",
                    "hookOutput": "",
                })  # fmt: skip
            else:
                self._missing("NotKnownHere")

    return Handler


@contextlib.contextmanager
def stand_in(cache: Path, key: str | None = KEY) -> Iterator[Hub]:
    """A hub that the client talks to, with a cache of its own; key is what the client has."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "none"))
        if key is None:
            patch.delenv("HF_TOKEN", raising=False)
        else:
            patch.setenv("HF_TOKEN", key)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
