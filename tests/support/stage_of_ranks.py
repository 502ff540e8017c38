"""A stage for tests of several processes: its ranks exchange objects, then each behaves as it is told.

`$STAGE_OF_RANKS` is JSON: rank -> `refuse`, `crash`, `kill`, `wait` (until it is interrupted, then it writes a
checkpoint), or `wait_once` (the same, unless it has waited before). A rank that is not named waits for the others at
the end. Each writes what it found into the folder `adapter`.
"""

import json
import os
import signal
import time
from pathlib import Path

from tokenuq_ml import process_group as group
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner


def run(request, reporter) -> None:
    """Exchange, then behave."""
    rank = group.rank()
    out = Path(next(iter(request.assets.values())).outputs["adapter"])
    (out / f"rank{rank}.json").write_text(json.dumps(exchanged()))
    reporter.info(f"rank {rank} has exchanged")
    behaviour = json.loads(os.environ.get("STAGE_OF_RANKS", "{}")).get(str(rank))
    if behaviour == "refuse":
        raise InputError(f"sums.jsonl: row {rank}: holds no answer; add one")
    if behaviour == "crash":
        raise RuntimeError(f"a bug of rank {rank}")
    if behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "wait" or (behaviour == "wait_once" and not (out / f"waiting{rank}").exists()):
        wait(out, rank)
    group.barrier()
    (out / f"done{rank}").touch()


def exchanged() -> dict:
    """Return what this rank gives and gets."""
    found = {"pid": os.getpid(), "rank": group.rank(), "size": group.world_size(), "is_main": group.is_main()}
    found["threads"] = os.environ.get("TOKENUQ_THREADS")
    found["any"] = [group.any_rank(False), group.any_rank(group.rank() == 1)]
    found["gathered"] = group.gather_objects([f"of {group.rank()}"] * (1 + group.rank()))
    found["on_main"] = group.on_main(lambda: [group.rank(), group.world_size()])
    found["dealt"] = [list(group.dealt(range(count))) for count in range(6)]
    found["merged"] = [list(group.merged(item * 10 for item in group.dealt(range(count)))) for count in range(6)]
    with group.alone():
        found["alone"] = list(group.merged(group.dealt(range(3))))
    return found


def wait(out: Path, rank: int) -> None:
    """Wait for an interrupt, and write a checkpoint."""
    (out / f"waiting{rank}").touch()
    try:
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        # A second interrupt meanwhile would spoil it.
        time.sleep(0.5)
        (out / f"checkpoint{rank}").touch()
        raise


def main() -> None:
    """Run as a stage."""
    runner.main(run)


if __name__ == "__main__":
    main()
