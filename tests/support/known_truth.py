"""A tiny study whose truth is known: a model, a teacher with a snapshot, and tables, as stages read them."""

from pathlib import Path

import polars as pl

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tests.support.tiny_truth import truth_of
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models.adapters import use_adapter
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import write_table

STEPS = 8
UNCERTAINTY = UncertaintySpec(samples=3, dropout=0.2)
ROWS = [*examples(6), *examples(3, "test"), *examples(2, "ood", dataset="other")]
KNOWN = ROWS[:9]
"""The examples of `other` have no truth."""
TRUTH = truth_of(KNOWN)


def teacher(step: int = STEPS):
    """Return the teacher after some steps: another seed stands for further training."""
    return tiny_peft(seed=step, dropout=0.1).eval()


def write_study(home: Path) -> dict[str, str]:
    """Write model, adapters and tables; return the inputs of stages by name."""
    tiny_model().save_pretrained(home / "model")
    for step, folder in ((STEPS, "adapter"), (2, "snapshots/step-000002"), (4, "snapshots/step-000004")):
        teacher(step).save_pretrained(home / folder)
    log = {
        **{"step": [1, STEPS], "epoch": [0.5, 1.0], "tokens": [9, 9], "lora_rank": [4, 4]},
        **{name: [1.0, 1.0] for name in ("loss", "mle_loss", "distill_loss", "selected_share")},
        **{name: [1.0, 1.0] for name in ("learning_rate", "grad_norm")},
    }
    model = teacher()
    losses, uncertainty = (
        score_examples(model, ROWS, FLOAT32),
        token_uncertainty(model, ROWS, UNCERTAINTY, FLOAT32),
    )
    with use_adapter(model, None):
        base = score_examples(model, ROWS, FLOAT32)
    losses = losses.with_columns(
        base_loss=base["loss"], base_entropy=base["entropy"], token=pl.lit("a"), category=pl.lit("word")
    )
    tables = {
        "tokenized_dataset": _tokenized(ROWS),
        "token_truth": TRUTH,
        "training_log": pl.DataFrame(log),
        "token_losses": losses,
        "token_uncertainty": uncertainty,
    }
    for name, frame in tables.items():
        write_table(frame, name, home / name, spec_hash="s", code_version="1-s")
    return {name: str(home / name) for name in ("model", "adapter", "snapshots", *tables)}


def _tokenized(rows: list[TokenizedExample]) -> pl.DataFrame:
    columns = ("example_id", "dataset", "split", "input_ids", "response_mask")
    return pl.DataFrame([{name: getattr(row, name) for name in columns} for row in rows])


def request_of(stage: str, fields: dict, inputs: dict[str, str], out: Path, *outputs: str) -> StageRequest:
    """Return the request for one asset whose outputs are folders of `out`."""
    asset = AssetRequest(fields=fields, code_version="1-s", outputs={name: str(out / name) for name in outputs})
    return StageRequest(entrypoint=stage, study="toy", assets={stage: asset}, inputs=inputs, work_dir=str(out / "work"))
