"""A stand-in for every stage: small, consistent tables at once, and misbehaviour on request.

`$FAKE_STAGE` holds JSON that maps a kind of misbehaviour to a stage's name, or `@` and the path of a file with such
JSON. The kinds are `bad_input`, `crash`, `die_once`, `hang`, `stubborn` (hangs and ignores SIGINT), `slow` (hangs, and
writes its checkpoint for two seconds), `wait` (until there is a file `go` in the stage's folder of checkpoints),
`resume` (hangs behind a complete checkpoint; with that checkpoint, works) and `spoil` (writes a table that a check must
refuse).
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.support.fake_tables import table
from tests.support.pictures import ONE_PIXEL
from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.config import spec_hash
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, CheckOutcome
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.schemas import TABLES

ENTRYPOINTS = (
    "convert_model",
    "load_dataset",
    "curate_dataset",
    "tokenize_dataset",
    "train_teacher",
    "score_teacher",
    "correlate",
    "train_student",
    "report",
    "export_model",
)
CHECKS = {"teacher_hidden": "cached_teacher_matches_online", "export": "logits_match"}
"""Stage -> the check whose outcome it reports itself."""


def write_package(folder: Path) -> None:
    """A package `fake_entrypoints` with a module for each entry point."""
    package = folder / "fake_entrypoints"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ENTRYPOINTS:
        (package / f"{name}.py").write_text("from tests.support import fake_stage\n\nfake_stage.main()\n")


def run(request, reporter) -> None:
    """Make the assets of a request, or misbehave."""
    text = os.environ.get("FAKE_STAGE", "{}")
    behaviour = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    for stage, asset in request.assets.items():
        reporter.info(f"working on {stage}")
        print(f"progress bar of {stage}", file=sys.stderr)
        if behaviour.get("resume") == stage:
            resume(Path(request.work_dir), reporter)
        misbehave(behaviour, stage, asset, Path(request.work_dir))
        spoil = behaviour.get("spoil") == stage
        reporter.done(make(stage, asset, request, spoil))


def misbehave(behaviour: dict[str, str], stage: str, asset, work_dir: Path) -> None:
    if behaviour.get("bad_input") == stage:
        Path(next(iter(asset.outputs.values())), "half").touch()
        raise InputError(f"{stage}.yaml: row 3: holds no answer; add one")
    if behaviour.get("crash") == stage:
        raise RuntimeError("a bug in the stage")
    if behaviour.get("die_once") == stage:
        with contextlib.suppress(FileExistsError):
            Path(work_dir, "died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    if behaviour.get("wait") == stage:
        note_pids(work_dir, os.getpid())
        while not (work_dir / "go").exists():
            time.sleep(0.05)
    if stage in (behaviour.get("hang"), behaviour.get("stubborn")):
        hang(work_dir, stubborn="stubborn" in behaviour, writing_s=2.0 if "slow" in behaviour else 0.0)


def make(stage: str, asset, request, spoil: bool) -> AssetResult:
    """Write all outputs of an asset; the data version is the hash of its fields and tables."""
    digests = [spec_hash(asset.fields)]
    for output, folder in asset.outputs.items():
        name = output.removesuffix("_base").removesuffix("_teacher")
        if name in TABLES:
            digests.append(write_table(table(name, stage, request, spoil), name, folder, **asset.stamp))
        elif output == "plots":
            Path(folder, "curve.png").write_bytes(ONE_PIXEL)
        elif output == "adapter":
            save_file({"weight": np.ones(2, np.float32)}, Path(folder, "adapter_model.safetensors"))
        else:
            Path(folder, "content").write_text(spec_hash(asset.fields))
    agree = CheckOutcome(passed=not spoil, description="as the fake stage was told")
    checks = {CHECKS[stage]: agree} if stage in CHECKS else {}
    return AssetResult(
        stage=stage,
        data_version="-".join(digests),
        metrics={"inputs": ",".join(sorted(request.inputs))},
        checks=checks,
        plots={"Curve": "plots/curve.png"} if "plots" in asset.outputs else {},
    )


def hang(work_dir: Path, stubborn: bool, writing_s: float) -> None:
    """Write our pid and that of a child, and wait. On SIGINT, write a checkpoint, unless `stubborn`."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    if stubborn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    note_pids(work_dir, os.getpid(), grandchild.pid)
    try:
        time.sleep(120)
    except KeyboardInterrupt:
        time.sleep(writing_s)
        (work_dir / "checkpoint").write_text("step 7")
        raise


def resume(work_dir: Path, reporter) -> None:
    """Hang behind a complete checkpoint, or resume from it."""
    folder, state = work_dir / "0123abcd" / "checkpoint-7", b"the state at step 7"
    if (folder / "COMPLETE").exists() and (folder / "state.pt").read_bytes() == state:
        reporter.info("resuming from step 7")
        return
    folder.mkdir(parents=True)
    (folder / "state.pt").write_bytes(state)
    digests = {"checkpoint-7/state.pt": hashlib.sha256(state).hexdigest()}
    (folder / "COMPLETE").write_text(json.dumps(digests))
    hang(work_dir, stubborn=False, writing_s=0.0)


def note_pids(work_dir: Path, *pids: int) -> None:
    """Write which processes wait."""
    with atomic_write(work_dir / "pids", durable=False) as file:
        file.write(" ".join(map(str, pids)).encode())


def main() -> None:
    runner.main(run)
