"""A Ray cluster, asked by its dashboard's address: jobs and nodes. Every question has a time limit.

Uses Ray's own `JobSubmissionClient` and state API. dagster-ray's `PipesRayJobClient` wraps the same client for runs
that wait for one job. It reads messages from the job's merged log (a progress bar without a newline hides one, a
message of megabytes ends the stream, and the run succeeds all the same), passes the environment to Ray, which shows and
logs it, does not wait for a stopped job, and cannot follow a job that another process has started.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from tokenuq_ml.errors import InputError

ADDRESS = "RAY_ADDRESS"
"""Environment variable, also of Ray itself: address of the dashboard, or another one that Ray's job client knows."""
ANSWER_S = 20.0
"""Seconds that the cluster has to answer."""
SUBMIT_S = 300.0
"""Seconds that a submission has, which may upload the code."""
CONNECT_POLL_S = 2.0
NEEDS_ADDRESS = (
    "TOKENUQ_LAUNCHER=ray needs RAY_ADDRESS, the address of the cluster's dashboard, such as http://head-node:8265"
)
NEEDS_TOKEN = (
    "the cluster wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file with the token of the "
    "head node (default: ~/.ray/auth_token)"
)
NEEDS_PACKAGE = "TOKENUQ_LAUNCHER=ray needs the package ray: pip install 'tokenuq[ray]'"
PERMANENT = {"RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_ERROR", "JOB_ENTRYPOINT_COMMAND_START_ERROR"}
"""Kinds of errors that a second try would meet again."""

T = TypeVar("T")


class ClusterAway(Exception):
    """The cluster does not answer; the message says who, and what is known."""


class TokenRefused(ClusterAway):
    """The cluster answers that this process needs a token, or another one. Waiting does not help."""


class JobState(NamedTuple):
    """What Ray says of a job."""

    status: str
    """`PENDING`, `RUNNING`, `STOPPED`, `SUCCEEDED`, `FAILED`, or `GONE`: Ray does not know it."""
    message: str = ""
    error_type: str = ""

    @property
    def has_ended(self) -> bool:
        """Return whether Ray considers the job done, or lost."""
        return self.status not in ("PENDING", "RUNNING")


class NodeResources(NamedTuple):
    """What the nodes of a cluster have in total, by Ray's names."""

    nodes: tuple[Mapping[str, float], ...]

    def total(self, name: str) -> float:
        """Return the amount of a resource in the cluster."""
        return sum(node.get(name, 0.0) for node in self.nodes)

    def fit(self, needs: Mapping[str, float]) -> bool:
        """Return whether one node could hold this, if nothing else ran there."""
        return any(all(node.get(name, 0.0) >= amount for name, amount in needs.items()) for node in self.nodes)

    def room(self, needs: Mapping[str, float]) -> int:
        """Return how many processes that need as much the nodes could hold, if nothing else ran there."""
        return sum(int(min(node.get(name, 0.0) / amount for name, amount in needs.items())) for node in self.nodes)


class RayCluster:
    """The cluster at an address.

    Args:
        address: of the dashboard.
    """

    def __init__(self, address: str):
        self.address = address
        self._client: Any = None

    def submit(self, job: str, **options: Any) -> None:
        """Submit a job under a new id.

        Raises:
            ClusterAway: the cluster does not answer.
        """
        self._ask(lambda client: client.submit_job(submission_id=job, **options), SUBMIT_S)

    def state(self, job: str) -> JobState:
        """Return what Ray says of a job.

        Raises:
            ClusterAway: the cluster does not answer.
        """
        from ray.job_submission import JobStatus

        def ask(client: Any) -> JobState:
            try:
                info = client.get_job_info(job)
            except RuntimeError as error:
                if "404" in str(error):
                    return JobState("GONE", "the cluster does not know it")
                raise
            kind = getattr(info.error_type, "value", info.error_type)
            return JobState(JobStatus(info.status).value, info.message or "", str(kind or ""))

        return self._ask(ask, ANSWER_S)

    def stop(self, job: str) -> None:
        """Ask Ray to stop a job, also one that waits. What has ended, or is unknown, stays as it is.

        Raises:
            ClusterAway: the cluster does not answer.
        """

        def ask(client: Any) -> None:
            try:
                client.stop_job(job)
            except RuntimeError as error:
                if "404" not in str(error):
                    raise

        self._ask(ask, ANSWER_S)

    def resources(self) -> NodeResources:
        """Return what the nodes that are alive have.

        Raises:
            ClusterAway: the cluster does not answer.
        """
        from ray.util.state import list_nodes

        def ask(client: Any) -> NodeResources:
            nodes = list_nodes(address=client.get_address(), timeout=int(ANSWER_S), limit=10_000)
            return NodeResources(tuple(dict(node.resources_total) for node in nodes if node.state == "ALIVE"))

        return self._ask(ask, ANSWER_S)

    def wait(self, seconds: float, say: Callable[[str], None]) -> NodeResources:
        """Return what the cluster has, once it answers.

        Args:
            seconds: to wait at most.
            say: called with one sentence before waiting.

        Raises:
            TokenRefused: it wants a token that this process does not have.
            ClusterAway: it has not answered.
        """
        deadline, told = time.monotonic() + seconds, False
        while True:
            try:
                return self.resources()
            except TokenRefused:
                raise
            except ClusterAway as away:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    say(f"waiting for the Ray cluster: {away}")
                    told = True
            time.sleep(CONNECT_POLL_S)

    def _ask(self, question: Callable[[Any], T], seconds: float) -> T:
        """Ask the client, in a thread: its HTTP requests have no time limit."""

        def ask() -> T:
            if self._client is None:
                from ray.job_submission import JobSubmissionClient

                self._client = JobSubmissionClient(self.address)
                # Ray prints each file that it leaves out of an upload.
                for handler in logging.getLogger("ray").handlers:
                    handler.setLevel(logging.WARNING)
            return question(self._client)

        try:
            return within(seconds, ask)
        except Exception as error:
            # Ray raises ConnectionError, RuntimeError, and errors of requests, aiohttp and gRPC.
            self._client = None
            if _wants_token(error):
                raise TokenRefused(f"{ADDRESS}={self.address}: {NEEDS_TOKEN}") from None
            raise ClusterAway(f"{ADDRESS}={self.address}: {_first_line(error)}") from None


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return what a function returns, or raise what it raises.

    Raises:
        TimeoutError: it takes longer; its thread is left behind.
    """
    done: list[tuple[bool, Any]] = []

    def call() -> None:
        try:
            done.append((True, function()))
        except BaseException as error:
            done.append((False, error))

    thread = threading.Thread(target=call, daemon=True, name="ray-question")
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    succeeded, outcome = done[0]
    if not succeeded:
        raise outcome
    return outcome


def cluster_of(environment: Mapping[str, str] = os.environ) -> RayCluster:
    """Return the cluster that the environment names. Does not connect.

    Raises:
        InputError: it names none, or ray is not installed.
    """
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise InputError(NEEDS_PACKAGE)
    address = environment.get(ADDRESS)
    if not address:
        raise InputError(NEEDS_ADDRESS)
    return RayCluster(address)


def _wants_token(error: BaseException) -> bool:
    """Return whether Ray has refused this process. Its state API wraps the error of its client."""
    from ray.exceptions import AuthenticationError

    causes = (error, error.__cause__, error.__context__)
    return any(isinstance(one, AuthenticationError) for one in causes)


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
