"""The stages that compare the teacher with the truth, against plain PyTorch on the published adapters."""

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.support.known_truth import KNOWN, ROWS, STEPS, TRUTH, UNCERTAINTY, request_of, teacher, write_study
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32, tiny_model
from tests.support.tiny_truth import plain_kl
from tokenuq_ml.config import EvaluationSpec, TrainSpec
from tokenuq_ml.data.batching import collate
from tokenuq_ml.errors import InputError
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.stages import choose_teacher, correlate, measure_truth, train_teacher
from tokenuq_ml.stages.rank_against_truth import rank_against_truth
from tokenuq_ml.tables.parquet import read_table, write_table

pytestmark = pytest.mark.slow

FIELDS = {"model": "m", "uncertainty": UNCERTAINTY.fields(), "fractions": [0.0, 0.25, 0.5, 1.0]}
ANALYSIS = {"evaluation": EvaluationSpec(bootstrap=50).fields()}
KEYS = ["example_id", "position"]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both stages, run one after the other: the folder of their tables, the inputs, and what was reported."""
    out, reporter = tmp_path_factory.mktemp("truth"), RecordingReporter()
    inputs = write_study(out / "study")
    tables = ("true_divergence", "true_divergence_over_training")
    measure_truth.run(request_of("true_divergence", FIELDS, inputs, out, *tables), reporter)
    inputs |= {name: str(out / name) for name in tables}
    outputs = ("uncertainty_analysis", "truth_ranking", "plots")
    correlate.run(request_of("uncertainty_analysis", ANALYSIS, inputs, out, *outputs), reporter)
    return out, inputs, {result.stage: result for result in reporter.results}


def of_model(model, column: str) -> pl.DataFrame:
    """KL of each token with a truth, from full logits."""
    frames = []
    for row in KNOWN:
        with torch.no_grad():
            logits = model(input_ids=collate([row]).input_ids_BT).logits[0, [at - 1 for at in row.positions]]
        kl = plain_kl(logits, TRUTH, row, column)
        frames.append(pl.DataFrame({"example_id": [row.example_id] * len(kl), "position": row.positions, "kl": kl}))
    return pl.concat(frames).cast({"position": pl.Int32})


@pytest.mark.parametrize("step", [0, 2, 4, STEPS])
def test_divergences_over_training_are_those_of_the_stored_adapters(made, step):
    rows = read_table(made[0] / "true_divergence_over_training").filter(step=step)
    model = teacher(step) if step else tiny_model()
    for column, of in (("true_kl", "probabilities"), ("clean_kl", "clean_probabilities")):
        both = rows.join(of_model(model, of), on=KEYS, validate="1:1")
        assert len(both) == len(rows) == sum(len(row.positions) for row in KNOWN)
        assert (both[column] - both["kl"]).abs().max() < 1e-4
    assert rows["fraction"].unique().to_list() == [step / STEPS]
    assert rows["bald"].null_count() == (len(rows) if step == 0 else 0)
    if step:
        expected = token_uncertainty(model, KNOWN, UNCERTAINTY, FLOAT32)
        both = rows.join(expected, on=KEYS, suffix="_plain")
        assert (both["bald"] - both["bald_plain"]).abs().max() < 1e-5 < both["bald"].max()


def test_the_last_and_the_first_are_teacher_and_base_model(made):
    rows, over_training = (read_table(made[0] / name) for name in made[1] if name.startswith("true_divergence"))
    for step, prefix in ((STEPS, ""), (0, "base_")):
        at = over_training.filter(step=step).select(*KEYS, "true_kl", "clean_kl")
        own = rows.select(*KEYS, *(pl.col(prefix + name).alias(name) for name in ("true_kl", "clean_kl")))
        assert own.equals(at)
    metrics = made[2]["true_divergence"].metrics
    assert metrics["mean_base_true_kl"] == pytest.approx(rows["base_true_kl"].mean())
    assert metrics["snapshots"] == 4 and metrics["precision"] == "float32"


def test_scores_are_ranked_at_each_step_by_what_a_selection_could_read_then(made):
    ranking = read_table(made[0] / "truth_ranking").filter(split="all", slot="all", statistic="spearman_true_kl")
    by_fraction = {
        fraction: dict(rows.select("score", "value").iter_rows()) for (fraction,), rows in ranking.group_by("fraction")
    }
    assert set(by_fraction) == {0.0, 0.25, 0.5, 1.0}
    assert set(by_fraction[1.0]) == {*by_fraction[0.0], "bald", "aleatoric"}
    inputs, losses = made[1], read_table(made[1]["token_losses"])
    over_training = read_table(inputs["true_divergence_over_training"])
    spearman = pl.corr("score", "true_kl", method="spearman")
    for step in (0, 2, STEPS):
        rows = over_training.filter(step=step).join(losses, on=KEYS, suffix="_teacher")
        for name, score in {
            "loss": pl.col("loss"),
            "entropy": pl.col("entropy"),
            "base_loss": pl.col("base_loss"),
            "loss_fall": pl.col("base_loss") - pl.col("loss"),
            "excess_loss": pl.col("loss") - pl.col("loss_teacher"),
        }.items():
            expected = rows.select(score.cast(pl.Float64).alias("score"), "true_kl").select(spearman).item()
            found = by_fraction[step / STEPS][name]
            if found is not None:
                assert found == pytest.approx(expected, abs=1e-6), (step, name)
    assert made[2]["uncertainty_analysis"].metrics["spearman_true_kl_loss"] == by_fraction[1.0]["loss"]


def test_each_estimator_of_bald_is_a_score_of_the_trained_teacher(made, tmp_path):
    uncertainty = read_table(made[1]["token_uncertainty"])
    tokens = correlate.joined_tokens(read_table(made[1]["token_losses"]), uncertainty)
    tokens = tokens.with_columns(bald_adapter_ensemble=pl.col("bald") * 2)
    request = request_of("uncertainty_analysis", ANALYSIS, made[1], tmp_path, "truth_ranking")
    table, figures = rank_against_truth(request, tokens)
    found = table.filter(split="all", slot="all", score="bald_adapter_ensemble", statistic="spearman_true_kl")
    assert found["fraction"].to_list() == [1.0]
    assert found["value"].item() == pytest.approx(figures["spearman_true_kl_bald"])
    assert "bald_std_error" not in table["score"].unique()


def test_the_analysis_of_data_without_a_truth_is_as_before(made, tmp_path):
    reporter = RecordingReporter()
    inputs = {name: made[1][name] for name in ("token_losses", "token_uncertainty")}
    outputs = ("uncertainty_analysis", "plots")
    correlate.run(request_of("uncertainty_analysis", ANALYSIS, inputs, tmp_path, *outputs), reporter)
    (result,) = reporter.results
    table = read_table(tmp_path / "uncertainty_analysis")
    assert table.equals(read_table(made[0] / "uncertainty_analysis"))
    assert result.data_version == write_table(
        table, "uncertainty_analysis", tmp_path / "again", spec_hash="s", code_version="c"
    )
    assert result.data_version != made[2]["uncertainty_analysis"].data_version
    assert not [name for name in result.metrics if "true_kl" in name]


def test_examples_that_have_no_truth_at_all_are_refused(made, tmp_path):
    nothing = write_table(TRUTH.clear(), "token_truth", tmp_path / "none", spec_hash="s", code_version="c")
    assert nothing
    inputs = {**made[1], "token_truth": str(tmp_path / "none")}
    tables = ("true_divergence", "true_divergence_over_training")
    with pytest.raises(InputError, match="token_truth has no row of the study's examples"):
        measure_truth.run(request_of("true_divergence", FIELDS, inputs, tmp_path, *tables), RecordingReporter())


def test_a_table_of_other_tokens_is_refused(made, tmp_path):
    over_training = read_table(made[1]["true_divergence_over_training"])
    write_table(over_training[1:], "true_divergence_over_training", tmp_path / "less", spec_hash="s", code_version="c")
    inputs = {**made[1], "true_divergence_over_training": str(tmp_path / "less")}
    outputs = ("uncertainty_analysis", "truth_ranking", "plots")
    with pytest.raises(InputError, match="materialise true_divergence again"):
        correlate.run(request_of("uncertainty_analysis", ANALYSIS, inputs, tmp_path, *outputs), RecordingReporter())


def test_the_study_has_tokens_without_a_truth():
    assert len(KNOWN) < len(ROWS)


def test_snapshots_are_taken_during_the_teachers_training_and_by_a_choice_among_candidates(made, tmp_path):
    fields = {
        "precision": "float32",
        "train": TrainSpec(epochs=2, batch_size=2, learning_rate=1e-2, lora={"rank": 2, "alpha": 4}).fields(),
        "seed": 3,
        "fractions": FIELDS["fractions"],
    }
    inputs = {name: made[1][name] for name in ("model", "tokenized_dataset")}
    outputs, reporter = ("adapter", "snapshots", "training_log", "plots"), RecordingReporter()
    train_teacher.run(request_of("baseline_teacher", fields, inputs, tmp_path / "t", *outputs), reporter)
    # Six train examples in batches of two, twice.
    steps = {folder.name: load_file(folder / WEIGHTS) for folder in (tmp_path / "t" / "snapshots").iterdir()}
    assert set(steps) == {"step-000002", "step-000003"} and reporter.results[0].metrics["steps"] == 6
    trained, middle = load_file(tmp_path / "t" / "adapter" / WEIGHTS), steps["step-000003"]
    assert set(trained) == set(middle) and any(not trained[name].equal(middle[name]) for name in trained)

    candidates = {"candidate": ["a", "b"], "chosen": [False, True], "loss": [2.0, 1.0], "n": [3, 3]}
    nothing = dict.fromkeys(("learning_rate", "epochs", "weight_decay", "ci_low", "ci_high"))
    table = pl.DataFrame({**candidates, **{name: [value] * 2 for name, value in nothing.items()}})
    write_table(table, "teacher_candidates", tmp_path / "c", spec_hash="s", code_version="c")
    of_candidates = {"a": made[0] / "study", "b": tmp_path / "t"}
    inputs = {f"{name}/{row}": str(home / name) for row, home in of_candidates.items() for name in outputs[:3]}
    request = request_of(
        "baseline_teacher", {}, {**inputs, "teacher_candidates": str(tmp_path / "c")}, tmp_path / "chosen", *outputs
    )
    choose_teacher.run(request, reporter)
    taken = {folder.name: load_file(folder / WEIGHTS) for folder in (tmp_path / "chosen" / "snapshots").iterdir()}
    assert {step: list(own) for step, own in taken.items()} == {step: list(own) for step, own in steps.items()}
    assert all(own[name].equal(steps[step][name]) for step, own in taken.items() for name in own)
