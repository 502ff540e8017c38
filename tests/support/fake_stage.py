"""A stand-in for every stage: small, consistent tables at once, and misbehaviour on request.

`$FAKE_STAGE` holds JSON that maps a kind of misbehaviour to a stage's name, or `@` and the path of a file with such
JSON. The kinds are `bad_input`, `crash`, `die_once`, `hang`, `stubborn` (hangs and ignores SIGINT) and `spoil` (writes
a table that a check must refuse).
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

from tests.support.pictures import ONE_PIXEL
from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.config import spec_hash
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetResult, CheckOutcome
from tokenuq_ml.tables.parquet import read_table, write_table
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
)
MASK = [False, False, True, True, True, False]


def write_package(folder: Path) -> None:
    """A package `fake_entrypoints` with a module for each entry point."""
    package = folder / "fake_entrypoints"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ENTRYPOINTS:
        (package / f"{name}.py").write_text("from tests.support import fake_stage\n\nfake_stage.main()\n")


def tokens(tokenized: pl.DataFrame) -> pl.DataFrame:
    """One row a response token: example_id, dataset, split, position."""
    return pl.DataFrame(
        [
            {"example_id": row["example_id"], "dataset": row["dataset"], "split": row["split"], "position": position}
            for row in tokenized.iter_rows(named=True)
            for position, scored in enumerate(row["response_mask"])
            if scored
        ]
    )


def table(name: str, stage: str, request, spoil: bool) -> pl.DataFrame:
    fields, inputs = request.assets[stage].fields, request.inputs
    if name == "examples":
        return pl.DataFrame(
            [
                {
                    "example_id": f"{fields['name']}/{split}{number}",
                    "split": split,
                    "source": "{}",
                    "messages": [
                        {"role": "user", "content": "Same?" if spoil else f"Is {split} | {number}\nodd?"},
                        {"role": "assistant", "content": "No."},
                    ],
                }
                for split, size in fields["sizes"].items()
                for number in range(size)
            ]
        )
    if name == "rejected_rows":
        return pl.DataFrame([{"number": 0, "file": "a", "row": 1, "line": 1, "reason": "empty text", "detail": "x"}])
    if name == "rejected_examples":
        return pl.DataFrame(schema=dict.fromkeys(TABLES[name].columns, pl.String))
    if name == "tokenized_dataset":
        read = [
            (key.removeprefix("examples/"), read_table(folder))
            for key, folder in inputs.items()
            if key.startswith("examples/")
        ]
        return pl.DataFrame(
            [
                {
                    "example_id": i,
                    "dataset": dataset,
                    "split": split,
                    # No two alike: the study's check for leaks compares them.
                    "input_ids": [1, 5, 6, 7, 8 + number, 2],
                    "response_mask": MASK,
                }
                for number, (dataset, i, split) in enumerate(
                    (dataset, *row)
                    for dataset, frame in read
                    for row in frame.select("example_id", "split").iter_rows()
                )
            ]
        )
    if name == "training_log":
        return pl.DataFrame(
            [
                {
                    "step": 1,
                    "epoch": 1.0,
                    "loss": 1.0,
                    "mle_loss": 1.0,
                    "distill_loss": None,
                    "selected_share": 1.0,
                    "learning_rate": 1e-4,
                    "grad_norm": 1.0,
                    "tokens": 6,
                    "lora_rank": 4,
                }
            ]
        )
    if name == "evaluations":
        row = {
            "family": "x",
            "seed": 0,
            "dataset": "toy",
            "split": "test",
            "metric": "loss",
            "ci_low": 0.9,
            "ci_high": 1.1,
            "n": 2,
            "higher_is_better": False,
        }
        return pl.DataFrame(
            [
                {**row, "value": 9.0 if spoil else 1.0},
                {**row, "value": 9.0 if spoil else 1.0, "dataset": "extra", "split": "ood"},
            ]
        )
    if name == "evaluation_examples":
        row = {"metric": "loss", "numerator": 9.0 if spoil else 1.0, "denominator": 1.0}
        return pl.DataFrame(
            [
                {**row, "example_id": "toy/a", "dataset": "toy", "split": "test"},
                {**row, "example_id": "extra/a", "dataset": "extra", "split": "ood"},
            ]
        )
    if name == "evaluation_tokens":
        held_out = tokens(read_table(inputs["tokenized_dataset"]).filter(pl.col("split").is_in(["test", "ood"])))
        return held_out.select("example_id", "position", loss=pl.lit(1.0), entropy=pl.lit(1.0))
    if name == "uncertainty_analysis":
        return pl.DataFrame(
            [
                {
                    "split": "all",
                    "category": "all",
                    "x": "loss",
                    "y": "bald",
                    "method": "spearman",
                    "value": 0.5,
                    "ci_low": 0.1,
                    "ci_high": 0.9,
                    "n": 9,
                }
            ]
        )
    if name == "curriculum":
        return pl.DataFrame(
            [{"step": 1, "epoch": 1.0, "category": "word", "n_tokens": 6, "n_selected": 2, "mean_loss": 1.0}]
        )
    if name == "curriculum_uncertainty":
        return pl.DataFrame(
            [
                {
                    "fraction": 1.0,
                    "step": 1,
                    "category": "all",
                    "n_tokens": 6,
                    "loss": 1.0,
                    "predictive_entropy": 1.0,
                    "expected_entropy": 0.9,
                    "bald": 0.1,
                }
            ]
        )
    rows = tokens(read_table(inputs["tokenized_dataset"])) if "tokenized_dataset" in inputs else None
    if name == "token_losses":
        rows = rows.head(len(rows) - 1) if spoil else rows
        return rows.with_columns(
            token_id=pl.lit(5),
            token=pl.lit("a"),
            category=pl.lit("word"),
            rank=pl.lit(0),
            **{c: pl.lit(1.0) for c in ("loss", "entropy", "base_loss", "base_entropy")},
        )
    if name == "token_alternatives":
        held_out = rows.filter(pl.col("split") != "train").select("example_id", "position")
        return held_out.with_columns(choice=pl.lit(0), token_id=pl.lit(5), token=pl.lit("a"), probability=pl.lit(0.5))
    if name == "token_uncertainty":
        return rows.select(
            "example_id",
            "position",
            predictive_entropy=pl.lit(1.0),
            expected_entropy=pl.lit(0.9),
            bald=pl.lit(2.0 if spoil else 0.1),
            bald_std_error=pl.lit(0.01),
            mc_loss=pl.lit(1.0),
            n_samples=pl.lit(5),
        )
    if name == "bald_reference":
        return rows.select("example_id", "position", bald=pl.lit(0.1), bald_float64=pl.lit(0.1001))
    if name == "selections":
        rows = rows.filter(pl.col("split") == "train")
        select = fields["ablation"]["select"]
        count = 0 if spoil else count_selected(1.0 if select["by"] == "all" else select["quantile"], len(rows))
        return rows.select(
            "example_id",
            "position",
            step=pl.lit(1),
            epoch=pl.lit(1.0),
            loss=pl.lit(1.0),
            selected=pl.int_range(pl.len()) < count,
            objective=pl.lit("mle"),
        )
    raise KeyError(name)


def run(request, reporter) -> None:
    text = os.environ.get("FAKE_STAGE", "{}")
    behaviour = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    for stage, asset in request.assets.items():
        reporter.info(f"working on {stage}")
        print(f"progress bar of {stage}", file=sys.stderr)
        if behaviour.get("bad_input") == stage:
            Path(next(iter(asset.outputs.values())), "half").touch()
            raise InputError(f"{stage}.yaml: row 3: holds no answer; add one")
        if behaviour.get("crash") == stage:
            raise RuntimeError("a bug in the stage")
        if behaviour.get("die_once") == stage:
            with contextlib.suppress(FileExistsError):
                Path(request.work_dir, "died").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        if stage in (behaviour.get("hang"), behaviour.get("stubborn")):
            hang(Path(request.work_dir), stubborn="stubborn" in behaviour)
        digests = [spec_hash(asset.fields)]
        for output, folder in asset.outputs.items():
            name = output.removesuffix("_base").removesuffix("_teacher")
            if name in TABLES:
                digests.append(
                    write_table(
                        table(name, stage, request, behaviour.get("spoil") == stage),
                        name,
                        folder,
                        spec_hash=asset.spec_hash,
                        code_version=asset.code_version,
                    )
                )
            elif output == "plots":
                Path(folder, "curve.png").write_bytes(ONE_PIXEL)
            else:
                Path(folder, "content").write_text(spec_hash(asset.fields))
        agree = CheckOutcome(passed=behaviour.get("spoil") != stage, description="as the fake stage was told")
        reporter.done(
            AssetResult(
                stage=stage,
                data_version="-".join(digests),
                metrics={"inputs": ",".join(sorted(request.inputs))},
                checks={"cached_teacher_matches_online": agree} if stage == "teacher_hidden" else {},
                plots={"Curve": "plots/curve.png"} if "plots" in asset.outputs else {},
            )
        )


def hang(work_dir: Path, stubborn: bool) -> None:
    """Writes its pid and that of a child of its own, and waits; SIGINT makes it write a checkpoint, if at all."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    if stubborn:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with atomic_write(work_dir / "pids", durable=False) as file:
        file.write(f"{os.getpid()} {grandchild.pid}".encode())
    try:
        time.sleep(120)
    except KeyboardInterrupt:
        (work_dir / "checkpoint").write_text("step 7")
        raise


def main() -> None:
    runner.main(run)
