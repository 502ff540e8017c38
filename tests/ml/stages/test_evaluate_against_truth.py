"""Evaluations of models on data whose truth is known: each token's divergence, and the metrics that follow."""

import pickle

import polars as pl
import pytest
import torch

from tests.support.known_truth import KNOWN, ROWS, STEPS, TRUTH, teacher, write_study
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import FLOAT32
from tests.support.tiny_truth import plain_kl
from tokenuq_ml.data.batching import collate
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.stages.adapted_model import StoredModel
from tokenuq_ml.stages.batch_work import ExampleBatches, Job, Measurer, Setting, groups
from tokenuq_ml.stages.candidate import Candidate
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.evaluate_model import evaluate_and_store
from tokenuq_ml.stages.measures import LossMeasure
from tokenuq_ml.stages.request import AssetRequest, StageRequest
from tokenuq_ml.tables.parquet import read_table

pytestmark = pytest.mark.slow

TABLES = ("evaluations", "evaluation_examples", "evaluation_tokens")
HELD_OUT = [row for row in ROWS if row.split != "train"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, write_study(folder)


def evaluate(study, out, *inputs: str) -> str:
    """Evaluate the teacher, write the tables into `out`, and return the digest."""
    folder, known = study
    asset = AssetRequest(
        fields={"precision": "float32", "evaluation": {"bootstrap": 50}},
        code_version="1-c",
        outputs={name: str(out / name) for name in TABLES},
    )
    request = StageRequest(
        entrypoint="train_student",
        assets={"evaluation": asset},
        inputs={name: known[name] for name in ("model", "tokenized_dataset", *inputs)},
        work_dir=str(out / "work"),
    )
    stored = StoredModel(known["model"], known["adapter"], "default", "float32")
    candidate = Candidate(teacher(), None, folder / "adapter", family="f", seed=0, name="toy", stored=stored)
    context = StageContext("evaluation", request, RecordingReporter(), FLOAT32)
    return evaluate_and_store(context, candidate, ROWS)[0]


def test_each_held_out_token_has_its_divergence_from_the_truth(study, tmp_path):
    evaluate(study, tmp_path, "token_truth")
    rows, model = read_table(tmp_path / "evaluation_tokens"), teacher(STEPS)
    assert set(rows["example_id"]) == {row.example_id for row in HELD_OUT}
    for row in HELD_OUT:
        own = rows.filter(example_id=row.example_id).sort("position")
        if row not in KNOWN:
            assert own["true_kl"].null_count() == own["clean_kl"].null_count() == len(own)
            continue
        with torch.no_grad():
            logits = model(input_ids=collate([row]).input_ids_BT).logits[0, [at - 1 for at in row.positions]]
        assert own["true_kl"].to_list() == pytest.approx(plain_kl(logits, TRUTH, row), abs=1e-5)
        clean = plain_kl(logits, TRUTH, row, "clean_probabilities")
        assert own["clean_kl"].to_list() == pytest.approx(clean, abs=1e-5)


def test_metrics_are_means_of_the_tokens_over_all_and_by_slot(study, tmp_path):
    evaluate(study, tmp_path, "token_truth")
    tokens = read_table(tmp_path / "evaluation_tokens").join(TRUTH, on=["example_id", "position"])
    metrics = dict(read_table(tmp_path / "evaluations").filter(dataset="toy").select("metric", "value").iter_rows())
    for kind in ("true_kl", "clean_kl"):
        assert metrics[kind] == pytest.approx(tokens[kind].mean())
        for (slot,), rows in tokens.group_by("slot"):
            assert metrics[f"{kind}_{slot}"] == pytest.approx(rows[kind].mean())
    other = read_table(tmp_path / "evaluations").filter(dataset="other")["metric"]
    assert not [name for name in other if "_kl" in name]


def test_without_a_truth_nothing_of_the_evaluation_changes(study, tmp_path):
    plain, known = evaluate(study, tmp_path / "plain"), evaluate(study, tmp_path / "known", "token_truth")
    assert plain != known
    for table in ("evaluations", "evaluation_examples"):
        without = read_table(tmp_path / "known" / table).filter(~pl.col("metric").str.contains("_kl"))
        assert without.equals(read_table(tmp_path / "plain" / table))
    tokens = read_table(tmp_path / "plain" / "evaluation_tokens")
    assert tokens["true_kl"].null_count() == len(tokens)


def test_processes_of_a_cluster_measure_the_same_divergence(study, tmp_path):
    evaluate(study, tmp_path, "token_truth")
    stored = StoredModel(study[1]["model"], study[1]["adapter"], "default", "float32")
    measure = LossMeasure(stored, alternatives=1, truth=study[1]["token_truth"])
    job = Job(ExampleBatches(HELD_OUT, BatchPlan(512, 1, None)), measure)
    threads, measurer, frames = torch.get_num_threads(), Measurer(), []
    try:
        for work in groups(job, Setting.of(FLOAT32)):
            found = measurer(work)
            assert not found["failure"], pickle.loads(found["failure"])
            frames += [scored.rows for scored, _ in pickle.loads(found["results"])]
    finally:
        measurer.close()
        torch.set_num_threads(threads)
    keys = ["example_id", "position"]
    both = pl.concat(frames).join(read_table(tmp_path / "evaluation_tokens"), on=keys, suffix="_here")
    assert len(both) == sum(len(row.positions) for row in HELD_OUT)
    assert both["true_kl"].null_count() == both["true_kl_here"].null_count() > 0
    assert (both["true_kl"] - both["true_kl_here"]).abs().max() < 1e-5
