"""What fails while a stage runs on the cluster, and what is expected then. Each trial ends with the usual versions."""

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.study import LOSSES, STUDY, TEACHER, ClusterStudy
from tests.support.processes import wait_until
from tests.support.ray_clusters import TwoNodes
from tokenuq_pipeline.runtime.launchers.job_folders import JobFolder, jobs_in

_DATA = ["models/tiny_llama", "datasets/sums", "datasets/chat", "datasets/checks", f"{STUDY}/tokenized_dataset"]
MADE_BEFORE = {TEACHER: _DATA, LOSSES: [*_DATA, TEACHER]}
"""Asset -> what it is made from."""
PATIENCE_S = 300.0
AWAY_S = 30.0


@dataclass(frozen=True)
class Trial:
    """One failure.

    Attributes:
        what: fails, and when.
        asset: that is being made. What it is made from is there already.
        expected: in words, for the table.
        act: fails it, and waits until the runs have ended; returns what was seen.
    """

    what: str
    asset: str
    expected: str
    act: Callable[[ClusterStudy, TwoNodes], str]


def job_of(study: ClusterStudy, asset: str) -> JobFolder:
    """Return the job of an asset, once it has started."""

    def started() -> JobFolder | None:
        return next((job for job in jobs_in(study.work_dir(asset)) if job.works()), None)

    return wait_until(started, PATIENCE_S)


def node_of(study: ClusterStudy, cluster: TwoNodes, asset: str) -> str:
    """Return the node on which the job of an asset runs."""
    job = job_of(study, asset)
    return wait_until(lambda: cluster.node_with(str(job.path)), PATIENCE_S)


def _trained_a_while(study: ClusterStudy, run: subprocess.Popen) -> None:
    def found() -> bool:
        assert run.poll() is None, study.said()[-6000:]
        return study.checkpoint_of(TEACHER) is not None

    wait_until(found, PATIENCE_S)


def _ended(study: ClusterStudy, run: subprocess.Popen, code: int = 0) -> None:
    assert run.wait(2 * PATIENCE_S) == code, study.said()[-6000:]


def _resumed(study: ClusterStudy) -> str:
    lines = [line for line in study.said().splitlines() if "resuming from step" in line]
    assert lines, study.said()[-6000:]
    return lines[-1].split("baseline_teacher: ")[-1]


def node_killed_while_training(study: ClusterStudy, cluster: TwoNodes) -> str:
    """Kill the node of a training."""
    run = study.start(cluster.address, TEACHER)
    _trained_a_while(study, run)
    first = node_of(study, cluster, TEACHER)
    cluster.kill(first)
    _ended(study, run)
    jobs = [line for line in study.said().splitlines() if "train_teacher" in line and ": reserves" in line]
    assert len(jobs) == 2, study.said()[-6000:]
    return f"on the other node: {_resumed(study)}"


def node_killed_while_scoring(study: ClusterStudy, cluster: TwoNodes) -> str:
    """Kill the node of the stage that scores tokens."""
    run = study.start(cluster.address, LOSSES)
    cluster.kill(node_of(study, cluster, LOSSES))
    _ended(study, run)
    assert "Ray job" in study.said() and "train_teacher" not in study.said(), study.said()[-6000:]
    return "scored again on the other node; the teacher stays"


def head_restarted(study: ClusterStudy, cluster: TwoNodes) -> str:
    """Kill the head node while a training runs, and start the cluster again."""
    run = study.start(cluster.address, TEACHER)
    _trained_a_while(study, run)
    cluster.stop()
    cluster.start()
    _ended(study, run)
    return f"a new job: {_resumed(study)}"


def run_killed(study: ClusterStudy, cluster: TwoNodes) -> str:
    """Kill the process of the run, as a restart of the daemon's machine does, and start the run again."""
    run = study.start(cluster.address, TEACHER)
    _trained_a_while(study, run)
    job = job_of(study, TEACHER)
    run.kill()
    run.wait()
    study.run(cluster.address, TEACHER)
    said = study.said()
    assert f"follows the Ray job {job.id}" in said and "resuming from step" not in said, said[-6000:]
    return "the second run follows the job, which has not been interrupted"


def cancelled(study: ClusterStudy, cluster: TwoNodes) -> str:
    """Cancel the run, as the UI does, and start it again."""
    run = study.start(cluster.address, TEACHER)
    _trained_a_while(study, run)
    run.send_signal(signal.SIGINT)
    _ended(study, run, 130)
    assert study.checkpoint_of(TEACHER) and not jobs_in(study.work_dir(TEACHER))
    study.run(cluster.address, TEACHER)
    return f"a checkpoint was written; {_resumed(study)}"


def stopped_in_ray(study: ClusterStudy, cluster: TwoNodes) -> str:
    """Stop the job in Ray's dashboard, and start the run again."""
    run = study.start(cluster.address, TEACHER)
    _trained_a_while(study, run)
    cluster.stop_job(job_of(study, TEACHER).id)
    _ended(study, run, 1)
    assert "was interrupted" in study.said(), study.said()[-6000:]
    study.run(cluster.address, TEACHER)
    return f"a checkpoint was written; {_resumed(study)}"


def store_away(study: ClusterStudy, cluster: TwoNodes) -> str:
    """Freeze the file system of the store for 30 s: whoever writes waits, as on a file server that is away.

    That is half of the lease's time. The job lets its stage work for five sixths of it without the store.
    """
    run = study.start(cluster.address, TEACHER)
    _trained_a_while(study, run)
    mount = study.home.parent
    subprocess.run(["fsfreeze", "--freeze", str(mount)], check=True)
    try:
        time.sleep(AWAY_S)
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", str(mount)], check=True)
    _ended(study, run)
    if "resuming from step" not in study.said():
        return "the stage and the run wait, and go on"
    return f"the stage was ended and retried, {_resumed(study)}"


TRIALS = [
    Trial(
        "a node is killed during training",
        TEACHER,
        "goes on from the checkpoint on the other node",
        node_killed_while_training,
    ),
    Trial("a node is killed during scoring", LOSSES, "scored again on the other node", node_killed_while_scoring),
    Trial(
        "the head node is killed and started again", TEACHER, "a new job resumes from the checkpoint", head_restarted
    ),
    Trial("the run is killed and started again", TEACHER, "follows the job", run_killed),
    Trial("the run is cancelled and started again", TEACHER, "resumes from its checkpoint", cancelled),
    Trial("the job is stopped in Ray's dashboard", TEACHER, "resumes from its checkpoint", stopped_in_ray),
    Trial("the store is away for 30 s", TEACHER, "waits, or resumes from its checkpoint", store_away),
]


def mounted_disk(folder: Path) -> Path | None:
    """Mount a file system of its own for a store, which can be frozen; None if this user or system cannot."""
    image, mount = folder / "disk.img", folder / "disk"
    mount.mkdir(parents=True)
    with open(image, "wb") as file:
        file.truncate(2**28)
    made = subprocess.run(["mkfs.ext4", "-q", str(image)], capture_output=True)
    if (
        made.returncode
        or subprocess.run(["mount", "-o", "loop", str(image), str(mount)], capture_output=True).returncode
    ):
        return None
    return mount
