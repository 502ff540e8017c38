"""A complete study on a small synthetic language: every model is scored against the truth, from its pre-training on."""

import os

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.pictures import leave_out_pictures
from tests.support.tiny_study import StagesInProcess
from tokenuq_ml.config.load import load_config
from tokenuq_ml.config.quantiles import count_selected
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.definitions import build_defs
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.heavy

STUDY, BATCH = "known", 4
ORACLES = {"static": "oracle_kl", "student": "oracle_kl_student", "chance": "oracle_entropy"}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {
    "datasets": {
        "words": {
            "format": "synthetic_language",
            "grammar": {"facts": 12, "values": 6, "noise": 0.2, "topics": 2, "choices": 4, "choice_entropy": 1.0},
            "sizes": {"train": 60, "ood": 4},
        },
        "post": {
            "format": "synthetic_language",
            "language": "words",
            "world": "post",
            "sizes": {"train": 12, "validation": 4, "test": 6},
        },
    },
    "models": {
        "small": {
            "source": "pretrain",
            "language": "words",
            "config": {"model_type": "llama", **SIZES, "max_position_embeddings": 256, "dtype": "float32"},
            "pretraining": {"steps": 6, "batch_size": 8, "learning_rate": 1e-2, "seed": 0},
        }
    },
    "studies": {
        STUDY: {
            "model": "small",
            "dataset": "post",
            "ood": ["words"],
            "max_length": 128,
            "precision": "float32",
            "train": {"epochs": 1, "batch_size": BATCH, "learning_rate": 1e-2, "lora": {"rank": 4, "alpha": 8}},
            "uncertainty": {"samples": 2},
            "curriculum": {"examples": 2, "samples": 2},
            "evaluation": {"bootstrap": 50},
            "ablations": ["mle", *ORACLES],
        }
    },
    "ablations": {
        "mle": {"select": "all"},
        **{name: {"select": {"by": by, "quantile": 0.25}, "rest": "distill"} for name, by in ORACLES.items()},
    },
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The store of the study, after one run."""
    folder, before = tmp_path_factory.mktemp("known"), dict(os.environ)
    for kind, entries in CONFIG.items():
        (folder / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    (folder / "dagster").mkdir()
    os.environ["DAGSTER_HOME"] = str(folder / "dagster")
    config, store = load_config(folder), Store(folder / "store")
    with dg.DagsterInstance.get() as instance, pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        defs = build_defs(config, store.home, StagesInProcess())
        assert run_study(defs, config, STUDY, [], instance, store) == 0
    yield store.home
    os.environ.clear()
    os.environ.update(before)


def table(home, name: str) -> pl.DataFrame:
    return scan(name, home, study=STUDY).collect()


def divergences(home, adapter: str | None, splits: list[str]) -> pl.DataFrame:
    """KL from the truth of each token, with transformers and PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(home / "models/small")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, home / adapter)
    truth, rows = table(home, "token_truth"), []
    tokenized = table(home, "tokenized_dataset").filter(pl.col("split").cast(pl.String).is_in(splits))
    for example in tokenized.iter_rows(named=True):
        with torch.no_grad():
            logits = model.eval()(torch.tensor([example["input_ids"]])).logits[0].double()
        log_q = (logits - logits.logsumexp(1, keepdim=True)).numpy()
        for token in truth.filter(example_id=example["example_id"]).iter_rows(named=True):
            p, q = np.array(token["probabilities"]), log_q[token["position"] - 1][token["support"]]
            kl = float((p[p > 0] * (np.log(p[p > 0]) - q[p > 0])).sum())
            rows.append((example["example_id"], token["position"], kl))
    schema = {"example_id": pl.String, "position": pl.Int32, "kl": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


@pytest.mark.parametrize("model", ["base", "teacher", "static"])
def test_evaluations_hold_the_divergence_of_the_published_models(home, model):
    adapters = {
        "base": None,
        "teacher": f"baseline_teacher/study={STUDY}/adapter",
        "static": f"student/study={STUDY}/ablation=static/adapter",
    }
    expected = divergences(home, adapters[model], ["test", "ood"])
    own = table(home, "evaluation_tokens").filter(pl.col("ablation").cast(pl.String) == model)
    both = own.join(expected, on=["example_id", "position"], validate="1:1")
    assert len(both) == len(own) == len(expected) > 50
    assert (both["true_kl"] - both["kl"]).abs().max() < 1e-4
    metrics = table(home, "evaluations").filter(pl.col("ablation").cast(pl.String) == model, metric="true_kl")
    datasets = both["example_id"].str.split("/").list.first()
    for dataset in ("post", "words"):
        mean = both.filter(datasets == dataset)["kl"].mean()
        assert metrics.filter(dataset=dataset)["value"].item() == pytest.approx(mean, abs=1e-5)


def test_oracles_select_by_the_truth(home):
    truth = table(home, "token_truth").select("example_id", "position", "true_entropy")
    divergence = table(home, "true_divergence").select("example_id", "position", "true_kl")
    base = divergences(home, None, ["train"])
    first = table(home, "selections").filter(step=1)
    first = first.join(truth, on=["example_id", "position"]).join(divergence, on=["example_id", "position"])
    first = first.join(base, on=["example_id", "position"])
    # At the first step the student is the base model.
    for ablation, score in {"static": "true_kl", "student": "kl", "chance": "true_entropy"}.items():
        rows = first.filter(pl.col("ablation").cast(pl.String) == ablation)
        selected, rest = (rows.filter(pl.col("selected") == chosen)[score] for chosen in (True, False))
        assert len(selected) == count_selected(0.25, len(rows)) and selected.min() >= rest.max() - 1e-5


def test_scores_are_ranked_at_each_share_of_the_teachers_training(home):
    ranking = table(home, "truth_ranking")
    assert set(ranking["fraction"]) == {0.0, 0.25, 0.5, 1.0}
    assert set(ranking["split"]) == {"all", "train", "validation", "test", "ood"}
    best = ranking.filter(score="true_kl", statistic="top_quarter_share", split="all", slot="all")
    others = ranking.filter(statistic="top_quarter_share", split="all", slot="all").join(best, on="fraction")
    assert (others["value"] <= others["value_right"] + 1e-9).all()
    page = (home / f"ablation_report/study={STUDY}/report.html").read_text()
    assert "What is left to learn?" in page and "Divergence by slot" in page
