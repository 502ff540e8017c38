"""Compare the inputs of a stage with what their manifests recorded, before the stage reads them.

Each file is read once more than the stage itself reads it, at 1 to 2 GB/s per processor (SHA-256 in hardware), and is
then in the page cache, from which the stage reads it. Files that the process makes itself are no inputs.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenuq_ml.errors import InputError
from tokenuq_ml.progress import Reporter
from tokenuq_ml.stages.request import RecordedInput, StageRequest
from tokenuq_ml.tables.integrity import REPAIR, SET_ASIDE, file_difference, unlisted
from tokenuq_ml.tables.partitions import PublishedFile, why_not_file

THREADS = 4
"""Files that are read at once, if there are as many processors. Hashing leaves Python's lock to other threads."""
TOLD_S = 2.0
"""Reading that takes longer is reported."""


def verify_inputs(request: StageRequest, reporter: Reporter) -> None:
    """Read every file of the request's inputs that the stage reads.

    Raises:
        InputError: a file is missing, is no regular file, has another size or SHA-256 than recorded, or does not
            belong to its asset. The message names the file and what repairs it.
    """
    started, found = time.monotonic(), {}
    for name, record in request.recorded.items():
        folder = Path(request.inputs[name])
        found |= {(folder, path): record for path in record.files}
        if extra := unlisted(folder, (folder / path for path in record.files)):
            raise InputError(f"{extra[0]} does not belong to {record.asset}; {SET_ASIDE}")
    largest_first = sorted(found.items(), key=lambda item: -item[1].files[item[0][1]].bytes)
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "verify-inputs")
    try:
        for sentence in pool.map(lambda item: _damage(*item[0], item[1]), largest_first):
            if sentence is not None:
                raise InputError(sentence)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    seconds = time.monotonic() - started
    if seconds > TOLD_S:
        size = sum(record.files[path].bytes for (_, path), record in found.items() if record.files[path].sha256) / 1e9
        reporter.info(f"compared {size:.1f} GB of inputs with their recorded hashes in {seconds:.0f} s")


def _damage(folder: Path, path: str, record: RecordedInput) -> str | None:
    """Return how one file differs from its record, and what repairs it."""
    expected, relative = record.files[path], f"{folder.name}/{path}"
    if expected.sha256 is None and record.is_partial:
        wrong = None
    elif expected.sha256 is None:
        wrong = why_not_file(folder.parent, relative, expected.bytes)
    else:
        file = PublishedFile(record.asset, relative, expected.bytes, expected.sha256)
        wrong = file_difference(folder.parent, file)
    return wrong and f"{record.asset}: {wrong}; {REPAIR}"
