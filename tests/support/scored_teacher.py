"""The stage `score_teacher` of a tiny teacher in many small shards, which ends where a test wants it to.

As a program, `python -m tests.support.scored_teacher REQUEST.json` is the stage with a part kept after each shard. Once
it has kept so many parts, it kills itself, as a lost node does, if `$ENDS` is `kill N`, or waits for an interrupt, if
`$ENDS` is `wait N`, with the file `waiting` in its folder of checkpoints.
"""

import copy
import os
import signal
import time
from pathlib import Path

import polars as pl

from tests.support.tiny_models import examples, tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.models.adapters import save_adapter
from tokenuq_ml.scoring import batch_threads
from tokenuq_ml.stages import losses_and_states, runner, score_teacher
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables import kept_parts
from tokenuq_ml.tables.parquet import write_table

ENDS = "ENDS"
SPLITS = {"train": 7, "validation": 2, "test": 4, "ood": 3}
EVALUATION = ("evaluations", "evaluation_examples", "evaluation_tokens")
FIELDS = {
    "token_losses": {},
    "teacher_hidden": {"teacher_cache_gigabytes": 1.0},
    "reference_evaluation": {"evaluation": {"bootstrap": 20}},
    "token_uncertainty": {"uncertainty": {"samples": 3, "dropout": 0.2}},
}
OUTPUTS = {
    "token_losses": ("token_losses", "token_alternatives", "plots"),
    "teacher_hidden": ("teacher_hidden",),
    "reference_evaluation": (
        *(f"{table}_{row}" for table in EVALUATION for row in ("base", "teacher")),
        "plots",
    ),
    "token_uncertainty": ("token_uncertainty", "bald_reference", "plots"),
}


def write_teacher(folder: Path) -> None:
    """Write a model, an adapter and a tokenised dataset."""
    vocab = len(tiny_tokenizer(folder / "model"))
    tiny_model(vocab=vocab).save_pretrained(folder / "model")
    save_adapter(tiny_peft(vocab=vocab), folder / "adapter")
    made = [one for split, count in SPLITS.items() for one in examples(count, split, vocab)]
    rows = [{"example_id": one.example_id, "dataset": one.dataset, "split": one.split} for one in made]
    lists = {"input_ids": [one.input_ids for one in made], "response_mask": [one.response_mask for one in made]}
    frame = pl.DataFrame(rows).with_columns(**{name: pl.Series(values) for name, values in lists.items()})
    write_table(frame, "tokenized_dataset", folder / "tokenized_dataset", spec_hash="s", code_version="1-s")


def request(folder: Path, out: str, *stages: str) -> StageRequest:
    """Return the request for some of the four assets; they go to `<folder>/<out>/<asset>`."""
    return StageRequest(
        entrypoint="score_teacher",
        study="toy",
        assets={
            stage: AssetRequest(
                fields={"precision": "float32", **copy.deepcopy(FIELDS[stage])},
                code_version="1-c",
                outputs={name: str(folder / out / stage / name) for name in OUTPUTS[stage]},
            )
            for stage in stages or FIELDS
        },
        inputs={name: str(folder / name) for name in ("model", "adapter", "tokenized_dataset")},
        work_dir=str(folder / "work"),
    )


def in_small_shards(setting=setattr) -> None:
    """Let a shard have a batch, and a batch about two examples; keep a part after each shard.

    Args:
        setting: sets an attribute; of a test, `monkeypatch.setattr`.
    """
    setting(losses_and_states, "SHARD_BATCHES", 1)
    setting(losses_and_states, "batch_tokens", lambda _: 40)
    setting(batch_threads, "CPU_TOKENS", 40)
    setting(kept_parts, "SHORTEST_S", 0.0)


def run(asked: StageRequest, reporter) -> None:
    """Run the stage, and end as the environment says."""
    in_small_shards()
    how, _, after = os.environ.get(ENDS, "").partition(" ")
    left, keep = int(after or 0), kept_parts.Keeper._keep

    def keep_and_end(keeper) -> None:
        nonlocal left
        keep(keeper)
        left -= 1
        if left == 0 and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0:
            Path(asked.work_dir, "waiting").touch()
            time.sleep(600)

    kept_parts.Keeper._keep = keep_and_end
    score_teacher.run(asked, reporter)


if __name__ == "__main__":
    runner.main(run)
