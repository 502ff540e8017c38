"""A Hugging Face hub on this machine that takes commits: repositories, LFS objects, and the files of each commit.

By the protocol that huggingface_hub speaks without Xet, whose client is a library of its own.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import _commit_api, constants, hf_api

TOKEN = "hf_of_a_test"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class Repository:
    """One repository."""

    def __init__(self, private: bool, files: dict[str, bytes] | None = None):
        self.private, self.files = private, dict(files or {})
        self.messages: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _take(self):
        hub, length = self.server.hub, int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = self.path.partition("?")[0]
        if path.startswith("/objects/"):
            hub.objects[path.rpartition("/")[2]] = body
            return self._answer(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        for pattern, method in _ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, hub, body, *found.groups())
        return self._answer(404, {"error": f"no route {self.command} {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _take

    def _create(self, hub, body):
        given = json.loads(body)
        name = "/".join(filter(None, (given.get("organization"), given["name"])))
        if hub.refuses_to_create:
            words = f"You don't have the rights to create a model under {name}"
            return self._answer(403, {"error": words}, {"X-Error-Message": words})
        if name in hub.repositories:
            return self._answer(409, {"error": "exists", "url": f"{hub.address}/{name}"})
        hub.repositories[name] = Repository(given.get("visibility") == "private" or bool(given.get("private")))
        return self._answer(200, {"url": f"{hub.address}/{name}"})

    def _info(self, hub, body, name):
        if name not in hub.repositories:
            return self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        found = hub.repositories[name]
        files = [{"rfilename": path} for path in found.files]
        return self._answer(200, {"id": name, "private": found.private, "sha": COMMIT, "siblings": files})

    def _tree(self, hub, body, name):
        files = hub.repositories[name].files.items()
        return self._answer(200, [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files])

    def _validate(self, hub, body):
        hub.validated.append(json.loads(body)["content"])
        return self._answer(200, {"errors": [], "warnings": []})

    def _modes(self, hub, body, name):
        given = json.loads(body)["files"]

        def mode(path):
            return "lfs" if path.endswith((".safetensors", "tokenizer.json")) else "regular"

        modes = [{"path": one["path"], "uploadMode": mode(one["path"]), "shouldIgnore": False} for one in given]
        return self._answer(200, {"files": modes})

    def _batch(self, hub, body, name):
        found = [
            {**one, "actions": {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return self._answer(200, {"transfer": "basic", "objects": found}, kind="application/vnd.git-lfs+json")

    def _commit(self, hub, body, name):
        repository = hub.repositories[name]
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.messages.append(value["summary"])
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                repository.files[value["path"]] = content
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        url = f"{hub.address}/{name}/commit/{COMMIT}"
        return self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})

    def _answer(self, status, content, headers=None, kind="application/json"):
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


_NAME = "([^/]+/[^/]+)"
_ROUTES = (
    (r"POST /api/repos/create", _Handler._create),
    (r"POST /api/validate-yaml", _Handler._validate),
    (rf"GET /api/models/{_NAME}", _Handler._info),
    (rf"GET /api/models/{_NAME}/revision/main", _Handler._info),
    (rf"GET /api/models/{_NAME}/tree/main", _Handler._tree),
    (rf"POST /api/models/{_NAME}/preupload/main", _Handler._modes),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", _Handler._batch),
    (rf"POST /api/models/{_NAME}/commit/main", _Handler._commit),
)


class WritableHub:
    """What a hub holds."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.validated: list[str] = []
        """Model cards whose metadata the client had checked."""
        self.refuses_to_create = False
        self.address = ""


@contextmanager
def writable_hub(monkeypatch, token: str | None = TOKEN) -> Iterator[WritableHub]:
    """Inside, huggingface_hub is online, has the token, and writes to this hub."""
    hub, server = WritableHub(), ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub, hub.address = hub, f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
        for module in (_commit_api, hf_api):
            patch.setattr(module, "is_xet_available", lambda: False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
