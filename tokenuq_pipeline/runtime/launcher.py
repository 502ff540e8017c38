"""Where a heavy stage runs: a child process that reports through Dagster Pipes.

Starts it, hands on what it says as it says it, and leaves nothing behind: neither when it
is cancelled nor when this process dies. Does not know what a stage computes or where
results go. Another launcher (Ray, Slurm) has the same `run`.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster._core.pipes.context import PipesMessageHandler

from tokenuq_ml.stages.request import AssetResult, StageRequest
from tokenuq_ml.stages.runner import BAD_INPUT, INTERRUPTED, PARENT_PIPE

POLL_S = 0.05
TAIL_LINES = 30


class StageFailure(dg.Failure):
    """A stage that did not get to its end. `crashed`: by no fault of its input, so that trying again may help."""

    def __init__(self, description: str, crashed: bool = False, **metadata):
        super().__init__(description=description, metadata=metadata, allow_retries=False)
        self.crashed = crashed


class MessageFile(dg.PipesMessageReader):
    """Reads the child's messages from a file, whenever `pump` is called: no thread, no lost order.

    A line that the child was writing when it died is left out.
    """

    def __init__(self, path: Path):
        self._path = path
        self._lines: deque[str] = deque()
        self._rest = ""

    @contextlib.contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[dict]:
        self._path.touch()
        with open(self._path, encoding="utf-8") as file:
            self._file, self._handler = file, handler
            yield {"path": str(self._path)}

    def pump(self) -> Iterator[dict]:
        """Hand on what has come since, line by line; yields the custom messages in their place among the others."""
        *lines, self._rest = (self._rest + self._file.read()).split("\n")
        self._lines += lines
        while self._lines:
            with contextlib.suppress(json.JSONDecodeError):
                message = json.loads(self._lines.popleft())
                self._handler.handle_message(message)
                if message["method"] == "report_custom_message":
                    yield message["params"]["payload"]

    @property
    def expected_writer_count(self) -> int:
        """One child writes. (Dagster's own property is a preview, and warns of that in every step.)"""
        return 1

    def no_messages_debug_text(self) -> str:
        return f"Its messages go to {self._path}."


class StageLauncher(dg.ConfigurableResource):
    """Runs `python -m <package>.<entrypoint> request.json` as a child of this process."""

    package: str = "tokenuq_ml.stages"
    termination_timeout: float = 30.0
    """Seconds that a child has to write its checkpoint after SIGINT."""

    def run(self, context: dg.AssetExecutionContext, request: StageRequest, staging: Path) -> Iterator[AssetResult]:
        """Yields each result as the child reports it.

        Closing the iterator, or any exception, stops the child: SIGINT to its process group,
        SIGKILL after `termination_timeout`.

        Raises:
            StageFailure: the child ended with anything but success.
        """
        request_file = staging / "request.json"
        request.write(request_file)
        reader = MessageFile(staging / "messages.jsonl")
        with (
            _alone_in(Path(request.work_dir), context) as lock,
            _parent_pipe() as read_end,
            dg.open_pipes_session(context, dg.PipesEnvContextInjector(), reader) as session,
            _Output(staging) as output,
        ):
            environment = {
                **os.environ,
                "TOKENIZERS_PARALLELISM": "false",
                "PYTHONUNBUFFERED": "1",
                **session.get_bootstrap_env_vars(),
                PARENT_PIPE: str(read_end),
            }
            command = [sys.executable, "-m", f"{self.package}.{request.entrypoint}", str(request_file)]
            # Its own session: Ctrl-C in a terminal reaches this process alone, which then asks the child to stop.
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output.stdout,
                stderr=output.stderr,
                start_new_session=True,
                pass_fds=[read_end, lock],
            )
            refusal = None
            try:
                while True:
                    # Asked before the reading: what it wrote last is then read for sure.
                    ended = process.poll() is not None
                    output.forward()
                    for message in reader.pump():
                        if message["kind"] == "result":
                            yield AssetResult(**message["result"])
                        else:
                            refusal = message["message"]
                    if ended:
                        break
                    time.sleep(POLL_S)
            finally:
                self._stop(context, process, reader, output)
            if process.returncode != 0:
                raise self._failure(request, process.returncode, refusal, output) from None

    def _stop(
        self, context: dg.AssetExecutionContext, process: subprocess.Popen, reader: MessageFile, output: "_Output"
    ) -> None:
        """Ends the child with all that it started. A second interrupt meanwhile kills at once."""
        try:
            if process.poll() is None:
                _signal_group(process, signal.SIGINT)
                context.log.info(f"stopping: {self.termination_timeout:.0f} s to write a checkpoint")
                deadline = time.monotonic() + self.termination_timeout
                while process.poll() is None and time.monotonic() < deadline:
                    deque(reader.pump(), maxlen=0)
                    output.forward()
                    time.sleep(POLL_S)
        finally:
            # Also after a clean end: what the child itself started must not outlive it.
            _signal_group(process, signal.SIGKILL)
            process.wait()
            deque(reader.pump(), maxlen=0)
            output.forward()

    def _failure(self, request: StageRequest, code: int, refusal: str | None, output: "_Output") -> StageFailure:
        name = "/".join(part for part in (request.study, request.ablation, request.entrypoint) if part)
        if refusal is not None:
            return StageFailure(refusal)
        if code in (INTERRUPTED, -signal.SIGINT):
            return StageFailure(f"{name} was interrupted")
        crashed = code != BAD_INPUT
        tail = output.tail()
        reason = f"{name} ended with exit code {code}"
        if code == -signal.SIGKILL:
            reason = f"{name} was killed (SIGKILL): most often, memory ran out"
        elif code == BAD_INPUT:
            reason = f"{name} refused its input"
        last = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
        stderr = dg.MetadataValue.md(f"```\n{tail}\n```")
        return StageFailure(f"{reason}: {last}" if last else reason, crashed, stderr=stderr)


class _Output:
    """The child's stdout and stderr: kept in files, copied to this process's, where Dagster captures them.

    Files, not pipes: a child that outlives this process by its grace time must not die of a broken pipe.
    """

    def __init__(self, folder: Path):
        self._paths = (folder / "stdout", folder / "stderr")

    def __enter__(self) -> "_Output":
        self.stdout, self.stderr = (path.open("ab") for path in self._paths)
        # Where Python's own streams go: it is those that Dagster captures.
        streams = (_descriptor(sys.stdout, 1), _descriptor(sys.stderr, 2))
        self._readers = [(path.open("rb"), descriptor) for path, descriptor in zip(self._paths, streams, strict=True)]
        return self

    def __exit__(self, *_) -> None:
        for file in (self.stdout, self.stderr, *(reader for reader, _ in self._readers)):
            file.close()

    def forward(self) -> None:
        for reader, descriptor in self._readers:
            with contextlib.suppress(OSError):
                while chunk := reader.read(1 << 16):
                    os.write(descriptor, chunk)

    def tail(self) -> str:
        lines = self._paths[1].read_text(errors="replace").replace("\r", "\n").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


def _descriptor(stream, default: int) -> int:
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return default


@contextlib.contextmanager
def _parent_pipe() -> Iterator[int]:
    """The read end of a pipe. The write end is close-on-exec, so that it dies with this process and no other."""
    read_end, write_end = os.pipe()
    try:
        yield read_end
    finally:
        os.close(read_end)
        os.close(write_end)


@contextlib.contextmanager
def _alone_in(work_dir: Path, context: dg.AssetExecutionContext) -> Iterator[int]:
    """Locks `work_dir`; waits while another run, or what a killed one left behind, is at work there.

    The child inherits the lock, so that it lasts as long as either lives: two trainings never
    write one checkpoint folder.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(work_dir / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    context.log.info("waiting for another run of this stage to end")
                    waiting = True
                time.sleep(10 * POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _signal_group(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
