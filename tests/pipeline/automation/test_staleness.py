"""What an edit makes stale: which assets are recomputed, and what `tokenuq status` shows."""

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, config_with
from tokenuq_ml.stages import versions
from tokenuq_pipeline.automation.explain import changed_fields
from tokenuq_pipeline.automation.staleness import ancestors, next_wave
from tokenuq_pipeline.commands import run as run_command
from tokenuq_pipeline.commands import status

pytestmark = pytest.mark.slow


def materialised(toy, config):
    """What each further run made, after the runs that there were."""
    with toy.instance() as instance:
        before = {run.run_id for run in instance.get_runs()}
        assert run_command.run_study(toy.defs(config), config, STUDY, [], instance, toy.store) == 0
        runs = [run for run in reversed(instance.get_runs()) if run.run_id not in before]
        events = dg.DagsterEventType.ASSET_MATERIALIZATION
        return [
            {entry.dagster_event.asset_key.to_user_string() for entry in instance.all_logs(run.run_id, of_type=events)}
            for run in runs
        ]


def rows(toy, config):
    with toy.instance() as instance:
        found = status.status_rows(toy.defs(config), config, [STUDY], instance, toy.store)
        return {row["asset"]: (row["state"], row["reason"]) for row in found}


@pytest.fixture
def made(made_study_with_file):
    return made_study_with_file


@pytest.fixture
def toy(made, tmp_path):
    copy = made.copy(tmp_path / "toy")
    (tmp_path / "extra.jsonl").write_text('{"rows": 1}\n')
    return copy


def test_a_fresh_study_is_up_to_date(made, tmp_path):
    config = config_with(made.folder.parent)
    assert rows(made, config) == {} and materialised(made, config) == []


def test_an_edited_ablation_recomputes_it_and_the_report(made, toy, tmp_path):
    config = config_with(made.folder.parent, quantile=0.5)
    assert rows(toy, config) == {
        "study/top/student": ("stale", "ablation.select.quantile: 0.25 -> 0.5"),
        "study/top/evaluation": ("waiting", "fresh now, may become stale after study/top/student"),
        "study/top/curriculum": ("waiting", "fresh now, may become stale after study/top/student"),
        "study/ablation_report": ("stale", "ablations.top.select.quantile: 0.25 -> 0.5"),
    }
    assert materialised(toy, config) == [
        {"study/top/student"},
        {"study/top/evaluation", "study/top/curriculum", "study/ablation_report"},
    ]


def test_an_edited_seed_recomputes_that_ablation(made, toy):
    config = config_with(made.folder.parent)
    config.ablations["mle"] = config.ablations["mle"].model_copy(update={"seed": 7})
    assert rows(toy, config)["study/mle/student"] == ("stale", "ablation.seed: 0 -> 7")
    assert set().union(*materialised(toy, config)) == {
        *(f"study/mle/{stage}" for stage in ("student", "evaluation", "curriculum")),
        "study/ablation_report",
    }


def test_an_edited_stage_recomputes_its_assets_and_what_follows(made, toy, monkeypatch):
    config = config_with(made.folder.parent)
    monkeypatch.setitem(versions.REVISIONS, "uncertainty_analysis", 99)
    state, reason = rows(toy, config)["study/uncertainty_analysis"]
    assert state == "stale" and reason.startswith("the stage's code changed (revision ") and reason.endswith("99)")
    # The fake's analysis has another stamp but equal content: the report's input did not change.
    assert materialised(toy, config) == [{"study/uncertainty_analysis"}]
    monkeypatch.setitem(versions.REVISIONS, "student", 99)
    assert set().union(*materialised(toy, config)) == {f"study/{ablation}/student" for ablation in ("mle", "top")}


def test_a_changed_data_file_recomputes_what_was_made_from_it(toy, made, tmp_path):
    path = made.folder.parent / "extra.jsonl"
    config, before = config_with(made.folder.parent), path.read_text()
    try:
        path.write_text('{"rows": 2}\n')
        assert rows(toy, config)["datasets/extra"] == ("stale", "files/extra has changed")
        # The fake reads no file: the rows come out the same, and nothing else is made for them.
        assert materialised(toy, config) == [{"datasets/extra"}] and rows(toy, config) == {}
        path.touch()
        assert rows(toy, config) == {}
    finally:
        path.write_text(before)


def test_more_data_recomputes_the_whole_study_but_not_the_model(made, toy):
    config = config_with(made.folder.parent)
    config.datasets["toy"] = config.datasets["toy"].model_copy(
        update={"sizes": {"train": 4, "validation": 2, "test": 2}}
    )
    assert rows(toy, config)["datasets/toy"] == ("stale", "sizes.train: 3 -> 4")
    remade = set().union(*materialised(toy, config))
    assert "study/tokenized_dataset" in remade and "study/token_losses" in remade and "study/top/student" in remade
    assert not remade & {"models/tiny", "datasets/extra"}


def test_another_ablation_is_one_student_more_and_one_less_leaves_the_report(made, toy):
    config = config_with(made.folder.parent, ablations=["mle", "top", "more"])
    config.ablations["more"] = config.ablations["top"].model_copy(update={"name": "more", "seed": 3})
    new = {f"study/more/{stage}" for stage in ("student", "evaluation", "curriculum")}
    assert set().union(*materialised(toy, config)) == new | {"study/ablation_report"}
    without = config_with(made.folder.parent)
    reasons = rows(toy, without)
    assert set(reasons) == {"study/ablation_report"} and "ablations.more: removed" in str(reasons)
    assert materialised(toy, without) == [{"study/ablation_report"}]
    assert toy.store.is_complete("study/more/student")


def test_changed_fields_are_named_with_their_paths():
    before = {"a": 1, "b": {"c": [1, 2], "gone": 0}, "same": {"x": 1}}
    now = {"a": 2, "b": {"c": [1, 3], "new": 5}, "same": {"x": 1}}
    assert list(changed_fields(before, now)) == [
        "a: 1 -> 2",
        "b.c: [1, 2] -> [1, 3]",
        "b.gone: removed",
        "b.new: new",
    ]


INPUTS = {"a": [], "b": ["a"], "c": ["b"], "d": ["c", "x"], "x": []}


@pytest.mark.parametrize(
    "stale, wave",
    [
        ("abcdx", "abcdx"),  # nothing exists: all in one run, each after its parents
        ("a", "a"),
        ("abc", "abc"),
        ("ac", "a"),  # b may be rebuilt with the same content: c waits
        ("bd", "b"),  # c, between them, is fresh with a stale ancestor
        ("xd", "xd"),  # one parent runs too, the other is settled
        ("axd", "ax"),
        ("", ""),
    ],
)
def test_a_wave_holds_what_certainly_has_to_run(stale, wave):
    assert next_wave(INPUTS, stale) == set(wave)


def test_ancestors_are_upstream_and_itself():
    assert ancestors(INPUTS, ["c"]) == {"a", "b", "c"} and ancestors(INPUTS, []) == set()


def test_a_damaged_manifest_makes_its_asset_stale_with_a_reason_that_names_the_file(made, toy):
    path = toy.store.home / ".manifests" / "study" / "token_losses.json"
    path.write_text(path.read_text()[:100])
    state, reason = rows(toy, config_with(made.folder.parent))["study/token_losses"]
    assert state == "stale"
    assert reason.startswith(f"is incomplete in the store: has a damaged manifest, {path}: is not JSON: ")
