"""Run a measuring stage whose batches are computed by processes of a Ray cluster (`batch_actors.py`).

`python -m tokenuq_ml.stages.measure_on_ray N|auto MODULE REQUEST.json` is `python -m MODULE REQUEST.json`, in this
process, with the same exit codes. It runs on a node of the cluster, or where RAY_ADDRESS names one.
"""

import importlib
import sys

from tokenuq_ml.config.resources import Processes
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import batch_actors, runner
from tokenuq_ml.stages.batch_actors import BatchActors
from tokenuq_ml.stages.request import StageReporter, StageRequest

USAGE = "usage: python -m tokenuq_ml.stages.measure_on_ray N|auto MODULE REQUEST.json"


def main() -> None:
    """Run the stage that the arguments name, and exit as it does."""
    if len(sys.argv) != 4:
        sys.exit(USAGE)
    asked, module, _ = sys.argv[1:]
    del sys.argv[1:3]
    # PyTorch is loaded by the stage, before the number of its threads is set.
    stage = importlib.import_module(module)

    def run(request: StageRequest, reporter: StageReporter) -> None:
        actors = BatchActors.of(_processes(asked), request.resources)
        if actors is None:
            reporter.info("the cluster has no room for processes that measure batches: this one measures them")
        else:
            reporter.info(f"{actors.size} processes of the cluster measure batches")
        batch_actors.use(actors)
        stage.run(request, reporter)
        if actors is not None:
            actors.close()

    runner.main(run)


def _processes(asked: str) -> Processes:
    """Return how many processes measure batches.

    Raises:
        InputError: it is no number from 1, and not `auto`.
    """
    if asked == "auto":
        return "auto"
    if not asked.isdigit() or int(asked) < 1:
        raise InputError(f"processes: {asked!r} is not a number from 1 or auto")
    return int(asked)


if __name__ == "__main__":
    main()
