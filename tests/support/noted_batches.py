"""Losses of a tiny model by processes of a Ray cluster that begins and ends here, each batch noted in a file.

`python -m tests.support.noted_batches FOLDER`; one process is killed while it computes the batch of `KILLED`.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tests.support.tiny_models import examples, tiny_model, tiny_peft
from tokenuq_ml.models.adapters import attach_adapter, save_adapter
from tokenuq_ml.models.load import load_model
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.scoring.token_losses import scored_batches
from tokenuq_ml.stages.adapted_model import StoredModel
from tokenuq_ml.stages.batch_actors import BatchActors
from tokenuq_ml.stages.batch_work import ExampleBatches, Job
from tokenuq_ml.stages.measures import LossMeasure, Run

EXAMPLES, TOKENS, KILLED = 40, 24, "killed"


def stored_model(folder: Path) -> StoredModel:
    """Save a tiny model with an adapter."""
    tiny_model().save_pretrained(folder / "base")
    save_adapter(tiny_peft(), folder / "adapter")
    return StoredModel(str(folder / "base"), str(folder / "adapter"), "default", "float32")


@dataclass(frozen=True)
class NotedLosses(LossMeasure):
    """Losses of batches, which are noted before they are computed. The eighth kills its process the first time."""

    folder: Path = Path()

    @contextmanager
    def open(self, model, numerics, keep) -> Iterator[Run]:
        """Note each batch."""

        def noted(batches):
            for batch in batches:
                with open(self.folder / "noted", "a") as file:
                    file.write(f"{batch.examples[0].example_id} {os.getpid()}\n")
                seen = (self.folder / "noted").read_text().count("\n")
                if seen >= 8 and not (self.folder / KILLED).exists():
                    (self.folder / KILLED).write_text(batch.examples[0].example_id)
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch

        with super().open(model, numerics, keep) as run:
            yield lambda batches: [pair for batch in noted(batches) for pair in run([batch])]


def main() -> None:
    """Compare what the processes give with what this one gives; print what was found."""
    import ray

    folder = Path(sys.argv[1])
    ray.init(num_cpus=3, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    stored = stored_model(folder)
    base, numerics = load_model(stored.base, stored.precision)
    model = attach_adapter(base, stored.adapter, stored.name)
    rows, plan = examples(EXAMPLES), BatchPlan.of(model, numerics, TOKENS)
    actors, measure = BatchActors(2, {"CPU": 1}), NotedLosses(stored, folder=folder)
    # What is asked next may depend on results: the processes stay.
    jobs = [Job(ExampleBatches(part, plan), measure) for part in (rows[:15], rows[15:], [])]
    found = [list(actors.run(part, numerics)) for part in (jobs[:1], jobs[1:])]
    results = [scored.rows for jobs in found for batches in jobs for scored in batches]
    here = [list(scored_batches(model, part, numerics, max_tokens=TOKENS)) for part in (rows[:15], rows[15:])]
    expected = [scored.rows for part in here for scored in part]
    print(
        json.dumps(
            {
                "equal": pl.concat(results).equals(pl.concat(expected)),
                "batches": len(expected),
                "noted": (folder / "noted").read_text().split("\n")[:-1],
                "killed": (folder / KILLED).read_text(),
            }
        ),
        flush=True,
    )
    actors.close()
    ray.shutdown()


if __name__ == "__main__":
    # The classes of a program itself cannot be unpickled in other processes.
    from tests.support import noted_batches

    noted_batches.main()
