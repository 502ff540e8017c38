"""A Ray cluster on loopback, for tests: a head and two nodes that can be killed, and a head that starts again."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from tests.support.processes import free_port

STORE_BYTES = 80_000_000
"""Of each node's object store; the least that Ray takes is 75 MB."""
WORKERS = ("first", "second")
NAMES = {"head", *WORKERS}
"""Nodes; each has a resource of its name. The head runs no stage, as Ray advises for clusters of any size."""
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


class TwoNodes:
    """Two nodes with one processor each, and a head without any.

    Every node is `ray start --block` with its children, and has a TOKENUQ_CACHE of its own.
    (`ray.cluster_utils.Cluster` starts all nodes as children of the test, so that a node cannot be killed with
    everything that runs on it.)
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], apart: bool = False):
        # Ray's sockets are in this folder, and their paths are limited to 107 characters.
        self._apart = apart
        self.folder, self._environment = folder, {**os.environ, **environment, **_QUIET, "RAY_TMPDIR": str(folder)}
        self.gcs_port, self.port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.nodes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Start the nodes that do not run."""
        if "head" not in self.nodes:
            self.start_head()
        for name in WORKERS:
            if name not in self.nodes:
                self.start_worker(name)

    def start_head(self) -> None:
        """Start the head node, and wait until its dashboard answers."""
        self._start(
            "head",
            "--head",
            f"--port={self.gcs_port}",
            f"--dashboard-port={self.port}",
            "--dashboard-host=127.0.0.1",
            "--include-dashboard=true",
        )
        self._wait(lambda: _answers(f"{self.address}/api/version"))

    def start_worker(self, name: str) -> None:
        """Start another node, and wait until the head knows it."""
        self._start(name, f"--address=127.0.0.1:{self.gcs_port}")
        self._wait(lambda: name in self.alive())

    def alive(self) -> set[str]:
        """Return the names of the nodes that the head takes for alive."""
        nodes = _answer(f"{self.address}/api/v0/nodes?detail=true")["data"]["result"]["result"]
        return {name for node in nodes if node["state"] == "ALIVE" for name in node["resources_total"]} & NAMES

    def cache_of(self, name: str) -> Path:
        """Return the folder in which a node keeps what it reads of a store in a bucket."""
        return self.folder / "caches" / name

    def _hiding(self, name: str) -> list[str]:
        """Return the beginning of a command that does not see the caches of other nodes.

        The head sees all of them: nodes of one address are one to Ray, which takes the driver of every job for one of
        the head's processes.
        """
        if not self._apart or name == "head":
            return []
        hidden = [str(self.cache_of(other)) for other in sorted(NAMES - {name})]
        for folder in hidden:
            os.makedirs(folder, exist_ok=True)
        script = f'for folder in {" ".join(hidden)}; do mount -t tmpfs none $folder || exit 1; done; exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, "sh"]

    def kill(self, name: str) -> None:
        """Kill all processes of a node at once, jobs on it included, as if it lost power."""
        node = self.nodes.pop(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()

    def stop(self) -> None:
        """Stop all nodes."""
        for name in list(self.nodes):
            self.kill(name)

    def node_with(self, words: str) -> str | None:
        """Return the name of the node that runs a process with these words in its command; None if none does."""
        for name, node in self.nodes.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(node.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if words in " ".join(process.cmdline()):
                            return name
        return None

    def stop_job(self, job: str) -> None:
        """Stop a job, as the button in Ray's dashboard does."""
        request = urllib.request.Request(f"{self.address}/api/jobs/{job}/stop", method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def _start(self, name: str, *options: str) -> None:
        with open(self.folder / f"{name}.log", "ab") as log:
            self.nodes[name] = subprocess.Popen(
                [
                    *self._hiding(name),
                    *RAY,
                    "start",
                    "--block",
                    f"--num-cpus={0 if name == 'head' else 1}",
                    f"--resources={json.dumps({name: 1})}",
                    f"--object-store-memory={STORE_BYTES}",
                    f"--dashboard-agent-listen-port={free_port()}",
                    f"--dashboard-agent-grpc-port={free_port()}",
                    "--disable-usage-stats",
                    *options,
                ],
                env={**self._environment, "TOKENUQ_CACHE": str(self.cache_of(name))},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def _wait(self, ready) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if ready():
                    return
            dead = [name for name, node in self.nodes.items() if node.poll() is not None]
            assert not dead, (self.folder / f"{dead[0]}.log").read_text()[-2000:]
            time.sleep(0.2)
        raise AssertionError(f"the cluster has not started: {list(self.folder.glob('*.log'))}")


_QUIET = {
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ENABLE_OPEN_TELEMETRY": "0",
    "RAY_prestart_worker_first_driver": "0",
    # A node that has died is noticed within ten seconds, not on a busy machine's first silence.
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_health_check_initial_delay_ms": "2000",
    # Without its head a node ends after this time.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "15",
}


@contextlib.contextmanager
def two_nodes(environment: Mapping[str, str] = {}, apart: bool = False) -> Iterator[TwoNodes]:
    """Start a cluster of two nodes, and stop it at the end of the block.

    Args:
        environment: further variables of its processes.
        apart: whether nodes do not see what others keep in TOKENUQ_CACHE, as on two machines. Needs root.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = TwoNodes(folder, environment, apart)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _answer(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=5) as reply:
        return json.load(reply)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(_answer(url))
    return False
