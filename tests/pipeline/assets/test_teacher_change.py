"""A study with an ablation that selects by the teacher's change has one more asset; others are as they were."""

from dataclasses import replace

import polars as pl
import pytest

from tests.support.toy_pipeline import STUDY, toy_config
from tokenuq_ml.config import AblationSpec
from tokenuq_ml.tables.parquet import write_table
from tokenuq_pipeline.assets.checks import table_checks
from tokenuq_pipeline.assets.graph import assets_by_name, stage_groups
from tokenuq_pipeline.assets.uncertainty_checks import changes_join_one_to_one
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import places_of

CHANGE = AblationSpec(name="change", select={"by": "change", "quantile": 0.25}, rest={"distill": {}})


def with_change():
    config = toy_config()
    study = config.studies[STUDY].model_copy(update={"ablations": (*config.studies[STUDY].ablations, "change")})
    return replace(config, ablations={**config.ablations, "change": CHANGE}, studies={**config.studies, STUDY: study})


def test_the_student_reads_it_and_it_reads_the_teacher():
    made = assets_by_name(with_change())
    student, measured = made[f"{STUDY}/change/student"], made[f"{STUDY}/teacher_change"]
    assert {item.name: item.asset for item in student.inputs}["teacher_change"] == (STUDY, "teacher_change")
    # The model and the tokenised dataset arrive through it.
    assert set(student.deps) == {(STUDY, "teacher_change"), (STUDY, "teacher_hidden")}
    assert {item.name for item in measured.inputs} == {"model", "tokenized_dataset", "adapter"}
    assert set(measured.deps) == {(STUDY, "tokenized_dataset"), (STUDY, "baseline_teacher")}
    (group,) = (group for group in stage_groups(with_change()) if group.entrypoint == "measure_change")
    assert [asset.stage for asset in group.assets] == ["teacher_change"]


def test_other_studies_and_ablations_are_as_they_were():
    plain, changed = assets_by_name(toy_config()), assets_by_name(with_change())
    added = {
        f"{STUDY}/teacher_change",
        *(f"{STUDY}/change/{stage}" for stage in ("student", "evaluation", "curriculum")),
    }
    assert set(changed) - set(plain) == added
    versions = {name for name in plain if plain[name].code_version != changed[name].code_version}
    assert versions == {f"{STUDY}/ablation_report"}
    named = lambda config: {check.key.name for check in table_checks(config)}  # noqa: E731
    assert named(with_change()) - named(toy_config()) == {"changes_join_one_to_one"}


def test_its_outputs_are_where_the_store_looks_for_them():
    measured = assets_by_name(with_change())[f"{STUDY}/teacher_change"]
    assert measured.outputs == places_of(measured.name)


@pytest.mark.parametrize(
    ("positions", "passed", "said"),
    [([1, 2], True, "0 tokens are in one table only"), ([1], False, "1 tokens"), ([1, 1, 2], False, "1 duplicate")],
)
def test_a_token_without_a_change_fails_the_check(positions, passed, said, tmp_path):
    store = Store(tmp_path)
    frames = {
        "teacher_change": pl.DataFrame(
            {
                "example_id": ["a"] * len(positions),
                "position": pl.Series(positions, dtype=pl.Int32),
                "change": pl.Series([0.1] * len(positions), dtype=pl.Float32),
            }
        ),
        "token_losses": pl.DataFrame(
            {
                "example_id": ["a", "a"],
                **dict.fromkeys(("dataset", "split", "token", "category"), ["x", "x"]),
                **{name: pl.Series([1, 2], dtype=pl.Int32) for name in ("position", "token_id", "rank")},
                **{
                    name: pl.Series([0.1, 0.2], dtype=pl.Float32)
                    for name in ("loss", "entropy", "base_loss", "base_entropy")
                },
            }
        ),
    }
    for table, frame in frames.items():
        write_table(frame, table, store.home / table / f"study={STUDY}", spec_hash="s", code_version="1-s")
    outcome = changes_join_one_to_one(store, STUDY)
    assert outcome.passed == passed and said in outcome.description
