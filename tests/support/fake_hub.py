"""A Hugging Face hub on this machine that serves one repository from a folder and answers as the real hub does."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants, hf_api
from transformers.utils import hub as transformers_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {
    # What: status, and the hub's own headers.
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "missing": (401, {"X-Error-Code": "RepoNotFound"}),
    "revision": (404, {"X-Error-Code": "RevisionNotFound"}),
    "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        folder, refusal = self.server.folder, self.server.refusal
        if "/resolve/" not in self.path:
            return self._answer(404, {})
        if refusal is not None:
            return self._answer(*REFUSALS[refusal])
        path = folder / self.path.rsplit("/", 1)[1]
        if not path.is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        self._answer(200, {"ETag": f'"{path.name}"', "X-Repo-Commit": COMMIT}, path.read_bytes())

    do_HEAD = do_GET

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b""):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def fake_hub(monkeypatch, cache: Path, folder: Path, refusal: str | None = None) -> Iterator[str]:
    """Inside, huggingface_hub is online and asks this hub, whose repository is `folder`; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.refusal = Path(folder), refusal
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template = "/{repo_id}/resolve/{revision}/{filename}"
    settings = {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    with monkeypatch.context() as patch:
        for name, value in settings.items():
            patch.setattr(constants, name, value)
        # Both took an address when they were made.
        patch.setattr(hf_api.api, "endpoint", address)
        patch.setattr(transformers_hub, "_hf_api", None)
        try:
            yield address
        finally:
            server.shutdown()
            server.server_close()
