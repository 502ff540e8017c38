"""Kills at random moments: a stage's process, the run's worker, the daemon, the whole server.

Half of the kills come within 200 ms of the moment at which a stage reports a result, which is when its asset is
published. After each, what the store serves is compared with an undisturbed run, byte for byte.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.support.dev_server import REPOSITORY, DevServer
from tests.support.paths import ROOT
from tests.survive.study import STUDY, Calm, TrialStudy
from tests.survive.trials import Record, Trial

PART = "kills"
NEAR_S = 0.2
TARGETS = ("stage", "tokenuq run", "daemon", "stage", "tokenuq run", "stage", "tokenuq run", "server")
"""The turn of what is killed: six of eight in `tokenuq run`, two in the web UI's processes."""
KILLS_A_RUN = 4
"""Stages that are killed in one run, which goes on after each."""


def kills(folder: Path, calm: Calm, record: Record, count: int, seed: int, deadline: float) -> None:
    """Make the kills that the record lacks until `deadline`, in seconds of `time.monotonic`."""
    study = TrialStudy(folder / "killed")
    while (done := len(record.trials(PART))) < count and time.monotonic() < deadline:
        draw = random.Random(f"{seed}/{done}")
        target, near = TARGETS[done % len(TARGETS)], draw.random() < 0.5
        if not calm.missing(study):
            start_again(study)
        in_terminal = target in ("stage", "tokenuq run")
        for trial in (_in_terminal if in_terminal else _in_server)(study, calm, target, near, draw):
            done += 1
            record.add(replace(trial, number=done))


def start_again(study: TrialStudy) -> None:
    """Delete all that the study has made, as a person does who wants to see it made."""
    for name in ("store", "dagster_home", "toy"):
        shutil.rmtree(study.folder / name, ignore_errors=True)


def _in_terminal(study: TrialStudy, calm: Calm, target: str, near: bool, draw: random.Random) -> Iterator[Trial]:
    started = time.monotonic()
    process = study.start("run", "--study", STUDY)
    printed: list[str] = []
    reader = threading.Thread(target=lambda: printed.extend(process.stdout), daemon=True)
    reader.start()
    when = _wait_for_moment(study, near, draw, lambda: process.poll() is not None)
    if process.poll() is not None:
        yield from _ended(study, calm, process.returncode, printed, started)
    elif target == "stage":
        yield from _stages_of_one_run(study, calm, process, printed, when, draw)
    else:
        process.kill()
        process.wait()
        orphans = study.wait_for_orphans()
        wrong = calm.wrong(study) + [f"stage {pid} is still at work" for pid in orphans]
        found = f"{_complete(study, calm)} assets complete"
        yield Trial(PART, 0, f"{target} killed {when}", found, tuple(wrong), time.monotonic() - started)


def _stages_of_one_run(
    study: TrialStudy, calm: Calm, process: subprocess.Popen, printed: list[str], when: str, draw: random.Random
) -> Iterator[Trial]:
    """Kill a stage, then stages of later steps: a step whose stage dies a third time fails by design."""
    made: list[Trial] = []
    while process.poll() is None and len(made) < KILLS_A_RUN:
        started, before = time.monotonic(), "".join(printed).count(" done in ")
        _kill(study.stages())
        wrong = tuple(calm.wrong(study))
        made.append(Trial(PART, 0, f"stage killed {when}", f"{_complete(study, calm)} assets complete", wrong, 0.0))
        while process.poll() is None and "".join(printed).count(" done in ") == before:
            time.sleep(0.05)
        when = _wait_for_moment(study, draw.random() < 0.5, draw, lambda: process.poll() is not None)
        made[-1] = replace(made[-1], seconds=time.monotonic() - started)
    code = _wait(process, 900)
    wrong = calm.wrong(study) + calm.missing(study) + ([] if code == 0 else ["".join(printed)[-800:]])
    found = f"{made[-1].found}; tokenuq run went on and ended with exit code {code}"
    made[-1] = replace(made[-1], found=found, wrong=(*made[-1].wrong, *wrong))
    yield from made


def _complete(study: TrialStudy, calm: Calm) -> str:
    return f"{len(calm.versions) - len(calm.missing(study))} of {len(calm.versions)}"


def _ended(study: TrialStudy, calm: Calm, code: int, printed: list[str], started: float) -> Iterator[Trial]:
    """The run was complete before the moment of the kill: check what it made, and kill nothing."""
    wrong = calm.wrong(study) + calm.missing(study)
    if code == 0 and not wrong:
        start_again(study)
        return
    wrong.append("".join(printed)[-800:])
    yield Trial(PART, 0, "nothing killed", f"exit code {code}", tuple(wrong), time.monotonic() - started)


_LATER = """
import dagster as dg
from tokenuq_pipeline.runtime import instance, paths
instance.UNTAGGED_S = 0
with dg.DagsterInstance.get() as records:
    instance.close_dead_runs(records, paths.store_home())
"""


def _in_server(study: TrialStudy, calm: Calm, target: str, near: bool, draw: random.Random) -> Iterator[Trial]:
    started = time.monotonic()
    server = SurviveServer(study)
    with server:
        run = server.launch_all()
        server.wait(lambda: server.status(run) not in ("QUEUED", "NOT_STARTED"), 90)
        finished = ("SUCCESS", "FAILURE", "CANCELED")
        when = _wait_for_moment(study, near, draw, lambda: server.status(run) in finished)
        if target == "server":
            server.kill()
        else:
            _kill(server.daemons())
            time.sleep(draw.uniform(0, 3))
            server.kill()
    orphans = study.wait_for_orphans()
    left = server.status(run)
    study.tokenuq("status", "--study", STUDY)
    code, printed = study.run()
    wrong = calm.wrong(study) + [f"stage {pid} is still at work" for pid in orphans]
    wrong += [f"{name} is missing" for name in calm.missing(study)] + ([] if code == 0 else [printed[-800:]])
    after = server.status(run)
    if after == "STARTING":
        # The server was killed before the run had a process, which the next start says after some minutes of silence.
        subprocess.run([sys.executable, "-c", _LATER], env=study.environment, cwd=ROOT, check=True, capture_output=True)
        after = f"{server.status(run)} some minutes later"
    if after.split()[0] not in ("SUCCESS", "FAILURE", "CANCELED"):
        wrong.append(f"the killed run is recorded as {after}")
    found = f"run left as {left}, then {after}; tokenuq run ended with exit code {code}"
    yield Trial(PART, 0, f"{target} killed {when}", found, tuple(wrong), time.monotonic() - started)


class SurviveServer(DevServer):
    """The web UI over a trial study."""

    job = STUDY

    def __init__(self, study: TrialStudy):
        super().__init__(study.folder)
        REPOSITORY["repositoryLocationName"] = "tokenuq"
        self.environment |= study.environment | {"DAGSTER_HOME": str(study.folder / "toy" / "dagster_home")}
        study.more_environment["DAGSTER_HOME"] = self.environment["DAGSTER_HOME"]
        self.arguments = ["-w", str(ROOT / "workspace.yaml")]
        self.study = study

    def launch_all(self) -> str:
        """Materialise the whole study, as the UI's button does."""
        code, text = self.study.tokenuq("status", "--study", STUDY, "--format", "json")
        rows = json.loads(text[text.index("[") :])
        return self.launch(*(row["asset"].split("/") for row in rows if row["state"] in ("missing", "stale")))

    def daemons(self) -> list[int]:
        """Return the pids of Dagster's daemon."""
        return [pid for pid in self.descendants() if "daemon" in Path(f"/proc/{pid}/cmdline").read_text()]


def _wait_for_moment(study: TrialStudy, near: bool, draw: random.Random, over) -> str:
    """Wait for a random moment, or for one close to a publish; return it in words."""
    if not near:
        seconds = draw.uniform(1, 12)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not over():
            time.sleep(0.1)
        return f"after {seconds:.1f} s"
    results, after = draw.randint(1, 3), draw.uniform(0, NEAR_S)
    seen = _results(study)
    results += sum(seen.values())
    while sum(seen.values()) < results and not over():
        seen |= _results(study)
        time.sleep(0.002)
    time.sleep(after)
    return f"{1000 * after:.0f} ms after a result was reported"


def _results(study: TrialStudy) -> dict[Path, int]:
    """Return how many results the stages at work have reported."""
    found = {}
    for path in study.store.home.glob(".staging/*/messages.jsonl"):
        with contextlib.suppress(OSError):
            found[path] = path.read_text(errors="replace").count('"kind": "result"')
    return found


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait(process: subprocess.Popen, seconds: float) -> int:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()
