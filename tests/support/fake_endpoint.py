"""An OpenAI-compatible endpoint in a thread, which answers chat completions by a function of the test."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "a key of the test's"


@dataclass
class Endpoint:
    """What was asked, and how it is answered."""

    url: str
    requests: list[dict] = field(default_factory=list)
    """Bodies of the chat completions."""


def outputs(body: dict) -> tuple[str, str]:
    """The two outputs in the prompt of alpaca_eval's classifying evaluators."""
    found = re.findall(r'"output": """(.*?)"""', body["messages"][-1]["content"], flags=re.S)
    return found[0], found[1]


def verdict(first: float) -> dict:
    """A choice that gives the first output this probability, by the log-probabilities of m and M."""
    import math

    tokens = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (("m", first), ("M", 1 - first)) if p]
    best = max(tokens, key=lambda token: token["logprob"])
    return {"content": best["token"], "logprobs": {"content": [{**best, "top_logprobs": tokens}]}}


def text(content: str) -> dict:
    """A choice without log-probabilities."""
    return {"content": content, "logprobs": None}


@contextmanager
def endpoint(answer: Callable[[dict], dict], key: str | None = KEY) -> Iterator[Endpoint]:
    """`answer` makes a choice (`verdict`, `text`) of a request's body; another key than `key` is refused.

    A `RuntimeError(message)` of `answer` is sent as an error 400, and a `RuntimeError(message, status)` as that one.
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            self._send(*((200, {"object": "list", "data": []}) if self._allowed() else (401, {"error": "no such key"})))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._allowed():
                self._send(401, {"error": {"message": "no such key"}})
                return
            served.requests.append(body)
            try:
                choice = answer(body)
            except RuntimeError as error:
                message, status = (*error.args, 400)[:2]
                self._send(status, {"error": {"message": message}})
                return
            message = {"role": "assistant", "content": choice["content"]}
            entry = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": choice["logprobs"]}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self._send(
                200,
                {
                    "id": "c",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [entry],
                    "usage": usage,
                },
            )

        def _allowed(self) -> bool:
            return key is None or self.headers.get("Authorization") == f"Bearer {key}"

        def _send(self, status: int, content: dict) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
