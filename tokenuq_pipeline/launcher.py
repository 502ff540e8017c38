"""Where a heavy stage runs: today a child process of its own, later a cluster.

Starts the entry point, passes its log lines and results on as they come, and makes sure
that nothing of it outlives the step. Does not know what a stage computes, nor where
outputs end up.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg

from tokenuq_ml.entrypoints.runner import BAD_INPUT, INTERRUPTED, PARENT_PIPE
from tokenuq_ml.stages import AssetResult, StageRequest

POLL_S = 0.2
STDERR_TAIL_LINES = 25


class StageLauncher(dg.ConfigurableResource):
    """Runs `python -m <package>.<entrypoint> request.json` under Dagster Pipes."""

    package: str = "tokenuq_ml.entrypoints"
    termination_timeout_s: float = 30.0

    def run(self, context: dg.AssetExecutionContext, request: StageRequest, folder: Path) -> Iterator[AssetResult]:
        """Yields each asset's result as soon as the child has reported it.

        `folder` takes the request and the child's output. When the consumer stops early,
        Dagster cancels or an error strikes, the child is asked to stop (SIGINT, so that
        training writes a checkpoint) and after `termination_timeout_s` killed, with its
        whole process group.

        Raises:
            dagster.Failure: the child did not end well; bad input carries its one sentence.
        """
        request_path = folder / "request.json"
        request.write(request_path)
        # dg.open_pipes_session would sleep and warn on a child that dies early; messages it did send are kept.
        with dg.open_pipes_session(
            context=context, context_injector=dg.PipesEnvContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            command = [sys.executable, "-m", f"{self.package}.{request.entrypoint}", str(request_path)]
            with open(folder / "stdout.log", "wb") as stdout, open(folder / "stderr.log", "wb") as stderr:
                ours, theirs = os.pipe()
                # The child holds the read end; only this process holds the write end, and it closes with us.
                process = subprocess.Popen(
                    command, stdout=stdout, stderr=stderr, start_new_session=True, pass_fds=(ours,),
                    env={**os.environ, **session.get_bootstrap_env_vars(), PARENT_PIPE: str(ours),
                         "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"})
                os.close(ours)
                seen = 0
                try:
                    while True:
                        ended = process.poll() is not None
                        messages = session.message_handler.get_custom_messages()
                        for message in messages[seen:]:
                            if message["kind"] == "result":
                                yield AssetResult(**message["result"])
                        seen = len(messages)
                        if ended:
                            break
                        time.sleep(POLL_S)
                finally:
                    self._end(process)
                    os.close(theirs)
        # Leaving the session waits for its reader: whatever came last is here now.
        messages = session.message_handler.get_custom_messages()
        for message in messages[seen:]:
            if message["kind"] == "result":
                yield AssetResult(**message["result"])
        self._check(process.returncode, messages, folder, request)

    def _end(self, process: subprocess.Popen) -> None:
        if process.poll() is None:
            _signal_group(process, signal.SIGINT)
            try:
                process.wait(self.termination_timeout_s)
            except subprocess.TimeoutExpired:
                pass
        # The group may hold grandchildren though its leader has ended.
        _signal_group(process, signal.SIGKILL)
        process.wait()

    def _check(self, code: int, messages, folder: Path, request: StageRequest) -> None:
        if code == 0:
            return
        if code == BAD_INPUT:
            said = [message["message"] for message in messages if message["kind"] == "bad_input"]
            raise dg.Failure(said[-1] if said else "bad input", allow_retries=False)
        if code == INTERRUPTED:
            raise dg.Failure("stopped; materialise it again to go on from the last checkpoint", allow_retries=False)
        tail = "\n".join((folder / "stderr.log").read_text(errors="replace").splitlines()[-STDERR_TAIL_LINES:])
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise dg.Failure(f"{request.entrypoint} {how}; the last it said:\n{tail}")


def _signal_group(process: subprocess.Popen, number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
