"""Teachers at several settings: each is measured on the validation split, and the best becomes the study's."""

import math

import polars as pl
import pytest
import torch

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import examples, tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import EvaluationSpec, TrainSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.validation import validation_losses
from tokenuq_ml.models.adapters import adapter_digest, attach_adapter
from tokenuq_ml.models.load import load_model
from tokenuq_ml.stages import choose_teacher, compare_teachers, train_teacher
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table, write_table

RATES = {"teacher_lr0p001": 1e-3, "teacher_lr0p05": 5e-2}
CANDIDATES = {name: {"learning_rate": rate} for name, rate in RATES.items()}


class Sweep:
    """A model, twelve train and three validation examples, and the stages that have run on them."""

    def __init__(self, folder):
        self.folder = folder
        tiny_tokenizer(folder / "model")
        tiny_model().save_pretrained(folder / "model")
        self.rows = [*examples(12), *examples(3, split="validation"), *examples(2, split="test")]
        columns = ("example_id", "dataset", "split", "input_ids", "response_mask")
        frame = pl.DataFrame([{name: getattr(row, name) for name in columns} for row in self.rows])
        write_table(frame, "tokenized_dataset", folder / "tokens", spec_hash="s", code_version="1-x")

    def run(self, program, stage: str, row: str, outputs: tuple[str, ...], fields: dict, inputs: dict):
        """Run a stage, and return its result and its outputs."""
        folders = {output: self.folder / row / output for output in outputs}
        for folder in folders.values():
            folder.mkdir(parents=True)
        written = {name: str(folder) for name, folder in folders.items()}
        asset = AssetRequest(fields=fields, code_version="1-x", outputs=written)
        request = StageRequest(
            entrypoint=program.__name__.rpartition(".")[2],
            study="s",
            ablation=row,
            assets={stage: asset},
            inputs={name: str(path) for name, path in inputs.items()},
            work_dir=str(self.folder / "work" / row),
        )
        reporter = RecordingReporter()
        program.run(request, reporter)
        (result,) = reporter.results
        return result, folders

    def teacher(self, stage: str, row: str, rate: float, *more: str):
        train = TrainSpec(epochs=1, batch_size=4, learning_rate=rate, warmup_ratio=0.0, lora={"rank": 4, "alpha": 8})
        fields = {"train": train.fields(), "seed": 0, "precision": "float32", "tables": "float32"}
        inputs = {"model": self.folder / "model", "tokenized_dataset": self.folder / "tokens"}
        return self.run(train_teacher, stage, row, ("adapter", "training_log", "plots", *more), fields, inputs)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return Sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def candidates(sweep):
    return {row: sweep.teacher("candidate_teacher", row, rate, "validation_losses") for row, rate in RATES.items()}


def plain_losses(sweep, adapter) -> dict[str, tuple[float, int]]:
    """Return each validation example's summed loss and tokens, from full logits of one example at a time."""
    base, _ = load_model(sweep.folder / "model", "float32")
    model, found = attach_adapter(base, adapter, "default"), {}
    for row in (row for row in sweep.rows if row.split == "validation"):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0]
        each = [torch.nn.functional.cross_entropy(logits[p - 1], ids[0, p]).item() for p in row.positions]
        found[row.example_id] = sum(each), len(each)
    return found


@pytest.mark.slow
def test_a_candidate_is_measured_on_the_validation_split_alone(sweep, candidates):
    result, outputs = candidates["teacher_lr0p05"]
    table, expected = read_table(outputs["validation_losses"]), plain_losses(sweep, outputs["adapter"])
    assert {row["example_id"]: row["tokens"] for row in table.iter_rows(named=True)} == {
        name: tokens for name, (_, tokens) in expected.items()
    }
    for row in table.iter_rows(named=True):
        assert row["loss"] == pytest.approx(expected[row["example_id"]][0], rel=1e-4)
    total = sum(loss for loss, _ in expected.values()) / sum(tokens for _, tokens in expected.values())
    assert result.metrics["validation_loss"] == pytest.approx(total, rel=1e-4)


@pytest.mark.slow
def test_the_best_candidate_is_the_teacher_as_if_it_had_been_trained_alone(sweep, candidates):
    losses = {f"validation_losses/{row}": outputs["validation_losses"] for row, (_, outputs) in candidates.items()}
    fields = {"candidates": CANDIDATES, "evaluation": EvaluationSpec(bootstrap=50).interval_fields()}
    compared, outputs = sweep.run(compare_teachers, "teacher_sweep", "all", ("teacher_candidates",), fields, losses)
    table = read_table(outputs["teacher_candidates"])
    found = dict(zip(table["candidate"], table["loss"], strict=True))
    assert found == {row: result.metrics["validation_loss"] for row, (result, _) in candidates.items()}
    best = min(found, key=found.get)
    assert compared.metrics["chosen"] == best and table.filter("chosen")["candidate"].to_list() == [best]
    assert table["learning_rate"].to_list() == list(RATES.values()) and table["epochs"].null_count() == 2
    inputs = {"teacher_candidates": outputs["teacher_candidates"]}
    for row, (_, made) in candidates.items():
        inputs |= {f"adapter/{row}": made["adapter"], f"training_log/{row}": made["training_log"]}
    wanted = ("adapter", "training_log", "plots")
    chosen, taken = sweep.run(choose_teacher, "baseline_teacher", "chosen", wanted, {"candidates": CANDIDATES}, inputs)
    alone, trained = sweep.teacher("baseline_teacher", "alone", RATES[best])
    assert chosen.data_version == alone.data_version
    assert chosen.metrics["candidate"] == best and chosen.metrics["final_loss"] == alone.metrics["final_loss"]
    weights = [(made["adapter"] / "adapter_model.safetensors").read_bytes() for made in (taken, trained)]
    assert weights[0] == weights[1] and (taken["plots"] / "training_curve.png").is_file()


def test_losses_are_summed_by_example_and_a_missing_split_is_named():
    rows = [
        ("b", "validation", 1, 1.0),
        ("a", "validation", 2, 4.0),
        ("b", "validation", 0, 2.0),
        ("t", "test", 0, 9.0),
    ]
    tokens = pl.DataFrame(rows, schema=["example_id", "split", "position", "loss"], orient="row")
    found = validation_losses(tokens)
    assert found.rows() == [("a", 4.0, 1), ("b", 3.0, 2)] and math.isfinite(found["loss"].sum())
    with pytest.raises(InputError, match="validation split has no response token"):
        validation_losses(tokens.filter(split="test"))


@pytest.mark.slow
def test_a_member_of_an_ensemble_is_trained_like_the_chosen_candidate(sweep, candidates):
    losses = {f"validation_losses/{row}": outputs["validation_losses"] for row, (_, outputs) in candidates.items()}
    fields = {"candidates": CANDIDATES, "evaluation": EvaluationSpec(bootstrap=50).interval_fields()}
    compared, outputs = sweep.run(
        compare_teachers, "teacher_sweep", "compared", ("teacher_candidates",), fields, losses
    )
    chosen, folders = candidates[compared.metrics["chosen"]]
    trains = {
        row: TrainSpec(epochs=1, batch_size=4, learning_rate=rate, warmup_ratio=0.0, lora={"rank": 4, "alpha": 8})
        for row, rate in RATES.items()
    }
    inputs = {"model": sweep.folder / "model", "tokenized_dataset": sweep.folder / "tokens", **outputs}
    member = {"candidates": {row: train.fields() for row, train in trains.items()}, "precision": "float32"}
    made = {}
    for seed in (0, 1):
        written = ("adapter", "training_log", "plots")
        made[seed], folder = sweep.run(
            train_teacher, "ensemble_teacher", f"member_s{seed}", written, {**member, "seed": seed}, inputs
        )
        log = read_table(folder["training_log"])
        assert log["learning_rate"].max() == pytest.approx(RATES[compared.metrics["chosen"]])
        # The candidate's own seed gives its adapter again, and another seed another one.
        assert (adapter_digest(folder["adapter"]) == adapter_digest(folders["adapter"])) == (seed == 0)
