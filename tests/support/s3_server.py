"""An S3 service on this machine (moto's server), and a proxy that loses, cuts, delays and refuses requests to it."""

import contextlib
import http.client
import http.server
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

BUCKET = "bucket"
REFUSE, CUT_REQUEST, CUT_ANSWER, LOSE_ANSWER, SLOW = "refuse", "cut request", "cut answer", "lose answer", "slow"
"""Answer 500 without asking the service; close the connection within the body of the request, or of the answer; let the
service act, and close the connection without an answer; wait half a second."""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Start the service and yield its address. It holds an empty bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    try:
        create_bucket(address)
        yield address
    finally:
        server.stop()


def create_bucket(address: str) -> None:
    import boto3

    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
    )
    client.create_bucket(Bucket=BUCKET)


def environment(address: str) -> dict[str, str]:
    """Return the environment of a user who has access to the service."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@dataclass
class Fault:
    """What happens to the next requests of a kind."""

    kind: str
    is_hit: Callable[[str, str], bool]
    """Method and path with query -> whether the request is hit."""
    times: int = 1


@dataclass
class FaultyProxy:
    """A proxy before a service.

    Attributes:
        faults: the first that hits a request is used up by it.
        requests: method and path of every request.
        is_away: close every connection.
        left: requests until it is away; None: any number.
    """

    target: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    is_away: bool = False
    left: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def break_next(self, kind: str, method: str, part: str = "", times: int = 1) -> Fault:
        """Let the next requests with this method, and this text in their path, fail."""
        fault = Fault(kind, lambda used, path: used == method and part in path, times)
        self.faults.append(fault)
        return fault

    def fault_of(self, method: str, path: str) -> str | None:
        """Return what happens to a request."""
        with self._lock:
            self.requests.append((method, path))
            if self.left is not None:
                self.left -= 1
                self.is_away = self.is_away or self.left < 0
            for fault in self.faults:
                if fault.times > 0 and fault.is_hit(method, path):
                    fault.times -= 1
                    return fault.kind
        return None

    @contextlib.contextmanager
    def started(self) -> Iterator[str]:
        """Serve, and yield the proxy's address."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.proxy.fault_of(self.command, self.path)
        if self.proxy.is_away:
            self.close_connection = True
            return
        if fault == CUT_REQUEST:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault == REFUSE:
            self._answer(500, {}, b"<Error><Code>InternalError</Code></Error>")
            return
        if fault == SLOW:
            time.sleep(0.5)
        connection = http.client.HTTPConnection(urlsplit(self.proxy.target).netloc, timeout=30)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if fault == LOSE_ANSWER:
            self.close_connection = True
            return
        self._answer(answer.status, dict(answer.getheaders()), content, cut=fault == CUT_ANSWER)

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        left_out = ("connection", "transfer-encoding") + (() if self.command == "HEAD" else ("content-length",))
        for name, value in headers.items():
            if name.lower() not in left_out:
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, *_) -> None:
        pass
