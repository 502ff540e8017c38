"""Where a measuring stage keeps finished parts: next to the checkpoints of the trainings of the same child process.

A folder is `<stage>-<key>`. The key hashes what the checkpoints' hashes, but for the number of processes, on which
measured tables do not depend: a scoring that two processes began may be finished by one.
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenuq_ml.config import spec_hash
from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.stages.context import StageContext


def kept_folder(context: StageContext, plan: BatchPlan, **inputs: Any) -> Path:
    """Return the folder for the kept parts of an asset; rank 0 alone uses it.

    Args:
        context: of the asset.
        plan: how examples become batches.
        **inputs: input -> its content digest, and whatever else decides the rows.
    """
    asset = context.asset
    key = spec_hash(
        {
            "spec": asset.spec_hash,
            "code": asset.code_version,
            **context.numerics.fields(),
            "plan": asdict(plan),
            "model": _files(context, "model"),
            **inputs,
        }
    )
    return Path(context.request.work_dir, f"{context.stage}-{key}")


def _files(context: StageContext, name: str) -> dict[str, str | None]:
    """Return the SHA-256 of each file of an input; those that its manifest records, which a stage by hand lacks."""
    if (record := context.request.recorded.get(name)) is not None:
        return {path: file.sha256 for path, file in record.files.items()}
    folder = context.input(name)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path.resolve()) for path in paths}


def forget_kept(context: StageContext) -> None:
    """Delete the kept parts of a complete asset, those of earlier specs too: a forced rerun measures all of it."""
    for folder in Path(context.request.work_dir).glob(f"{context.stage}-*"):
        shutil.rmtree(folder)
