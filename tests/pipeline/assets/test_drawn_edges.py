"""The edges of the graph: each one that is left out arrives by a path of those that are drawn."""

from dataclasses import replace

import pytest

from tests.support.shipped_studies import one_of_each
from tests.support.toy_pipeline import toy_config
from tokenuq_ml.config import DistillSpec, ObjectiveSpec
from tokenuq_ml.config.comparison import FrontComparison
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.truth import LANGUAGE
from tokenuq_pipeline.assets.drawn_edges import ARRIVES_THROUGH, kind_of
from tokenuq_pipeline.assets.graph import assets_by_name


@pytest.fixture(scope="module")
def shipped():
    """The assets of all shipped studies, of one whose truth is known, of a comparison of two, and of an export."""
    config = one_of_each()
    study = config.studies["quickstart"]
    language = config.datasets[study.dataset].model_copy(update={"name": "language", "format": LANGUAGE})
    known = study.model_copy(update={"name": "known", "dataset": "language"})
    uncertainty = study.uncertainty.model_copy(update={"estimators": ("adapter_ensemble",)})
    estimated = known.model_copy(update={"name": "estimated", "uncertainty": uncertainty})
    front = FrontComparison(name="front", kind="front", studies=("quickstart", "ablation_matrix"))
    config = replace(
        config,
        comparisons={"front": front},
        exports={"mle": ExportSpec(name="mle", study="quickstart", ablation="mle")},
        datasets={**config.datasets, "language": language},
        studies={**config.studies, "known": known, "estimated": estimated},
    )
    return {asset.path: asset for asset in assets_by_name(config).values()}


def upstream(assets, path):
    """Everything that a path of drawn edges leads from."""
    found, todo = set(), list(assets[path].deps)
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += assets[one].deps
    return found


def test_what_is_not_drawn_arrives_by_a_path_that_is(shipped):
    left_out = 0
    for path, asset in shipped.items():
        hidden = set(asset.reads) - set(asset.deps)
        assert set(asset.deps) <= set(asset.reads) and hidden <= upstream(shipped, path), path
        left_out += len(hidden)
    assert left_out > 1000


def test_every_argument_is_used(shipped):
    """None is about an input that its stage no longer reads."""
    used = {(one.stage, kind_of(path)) for one in shipped.values() for path in set(one.reads) - set(one.deps)}
    assert used == {(stage, kind) for stage, kinds in ARRIVES_THROUGH.items() for kind in kinds}


def edges(config, name):
    return {"/".join(path) for path in assets_by_name(config)[f"study/{name}"].deps}


def test_a_student_is_drawn_from_the_nearest_that_it_reads():
    assert edges(toy_config(), "mle/student") == {"models/tiny", "study/tokenized_dataset"}
    assert edges(toy_config(), "top/student") == {"study/teacher_hidden"}
    assert edges(toy_config(teacher_states="online"), "top/student") == {"study/baseline_teacher"}
    config = toy_config()
    base = ObjectiveSpec(kind="distill", distill=DistillSpec(teacher="base"))
    config.ablations["top"] = config.ablations["top"].model_copy(update={"rest": base})
    assert edges(config, "top/student") == {"models/tiny", "study/tokenized_dataset"}


def test_the_judge_is_drawn_and_the_models_own_weights_are_not():
    judge = {"alpaca_eval": {"dataset": "extra", "judge": {"local_model": "judge"}}}
    config = toy_config(evaluation=judge)
    config.models["judge"] = config.models["tiny"].model_copy(update={"name": "judge"})
    assert edges(config, "mle/evaluation") == {
        "models/judge",
        "datasets/extra",
        "study/mle/student",
        "study/token_losses",
    }
    assert ("models", "tiny") in assets_by_name(config)["study/mle/evaluation"].reads
