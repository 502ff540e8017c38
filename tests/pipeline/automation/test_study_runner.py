"""The study runner on fake stages: versions, staleness, waves, checks, failures and console output."""

import json
from dataclasses import replace

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.config import spec_hash
from tokenuq_ml.config.families import with_settings
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.assets.metadata import PREVIEW_ROWS
from tokenuq_pipeline.automation.study_runner import StudyRunner
from tokenuq_pipeline.commands import run as run_command
from tokenuq_pipeline.runtime.console import CONSOLE
from tokenuq_pipeline.runtime.git import git_state

pytestmark = pytest.mark.slow


def bring_up_to_date(toy, config=None, ablations=()):
    """Exit code, and the names of what each run so far has made."""
    config = config or toy_config()
    with toy.instance() as instance:
        code = run_command.run_study(toy.defs(config), config, STUDY, list(ablations), instance, toy.store)
        return code, made(instance)


def made(instance):
    runs = instance.get_run_records(limit=20)
    return [
        [
            event.dagster_event.asset_key.to_user_string()
            for event in instance.all_logs(record.dagster_run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        ]
        for record in reversed(runs)
    ]


def stale(toy, config=None):
    with toy.instance() as instance:
        runner = StudyRunner(toy.defs(config), config or toy_config(), STUDY, instance, toy.store, CONSOLE)
        found = runner.staleness(runner.targets(None))
        return {key.to_user_string(): reason for key, reason in found.reasons.items()}, found.pending_checks


@pytest.fixture
def copy(made_study, tmp_path):
    return made_study.copy(tmp_path / "toy")


def misbehave(monkeypatch, **behaviour):
    monkeypatch.setenv("FAKE_STAGE", json.dumps(behaviour))


def test_one_run_materialises_every_asset_and_then_all_are_fresh(made_study):
    with made_study.instance() as instance:
        (materialised,) = made(instance)
    assert len(materialised) == len(set(materialised)) == 17
    assert stale(made_study) == ({}, frozenset())


def test_a_second_run_recomputes_nothing_and_says_so(made_study, capfd):
    _, runs = bring_up_to_date(made_study)
    assert len(runs) == 1
    assert "up to date: nothing to recompute" in capfd.readouterr().out


def test_data_versions_come_from_the_stage_and_inputs_are_recorded(made_study):
    with made_study.instance() as instance:
        versions = {}
        for name in ("study/top/student", "study/top/evaluation", "study/top/curriculum"):
            event = instance.get_latest_materialization_event(dg.AssetKey(name.split("/"))).asset_materialization
            versions[name] = event.tags["dagster/data_version"]
            assert versions[name] == made_study.store.data_version(name)
            if name != "study/top/student":
                # Student and this one came from the same step: the new student counts, not the one before.
                assert event.tags["dagster/input_data_version/study/top/student"] == versions["study/top/student"]
                manifest = made_study.store.read_manifest(name)
                assert manifest.input_data_versions["study/top/student"] == versions["study/top/student"]


def test_forcing_a_student_and_its_evaluation_records_the_new_student(copy):
    """As above, where there is an older student that could be mistaken for it."""
    config = toy_config(quantile=0.9)
    keys = [dg.AssetKey([STUDY, "top", stage]) for stage in ("student", "evaluation")]
    before = copy.store.data_version("study/top/student")
    with copy.instance() as instance:
        result = copy.defs(config).resolve_job_def(STUDY).execute_in_process(instance=instance, asset_selection=keys)
        student, evaluation = (instance.get_latest_materialization_event(key).asset_materialization for key in keys)
        assert result.success
        assert evaluation.tags["dagster/input_data_version/study/top/student"] == student.tags["dagster/data_version"]
        runs = instance.get_run_records(limit=5)
    assert len(runs) == 2 and student.tags["dagster/data_version"] != before


def test_metadata_shows_rows_preview_plot_figures_and_spec(made_study):
    with made_study.instance() as instance:
        losses = instance.get_latest_materialization_event(dg.AssetKey([STUDY, "token_losses"])).asset_materialization
        key = dg.AssetKey([STUDY, "top", "student"])
        student = instance.get_latest_materialization_event(key).asset_materialization
    assert losses.metadata["dagster/row_count"].value == 27
    preview = losses.metadata["preview"].value.splitlines()
    assert preview[0].startswith("| example_id | dataset |") and len(preview) == 2 + PREVIEW_ROWS + 2
    assert losses.metadata["seconds"].value >= 0 and losses.metadata["peak_memory_mib"].value > 10
    assert student.metadata["Curve"].value.startswith("![curve](data:image/png;base64,")
    assert student.metadata["spec"].value["ablation"]["select"]["quantile"] == 0.25
    assert student.metadata["path_adapter"].value == str(
        made_study.store.path("student/study=study/ablation=top/adapter")
    )
    assert student.metadata["selections_rows"].value == 9


def test_every_materialisation_records_spec_inputs_and_packages(made_study):
    config, packages = toy_config(), {"python", "torch", "transformers", "peft", "polars", "pyarrow", "dagster"}
    assets = assets_by_name(config)
    with made_study.instance() as instance:
        for name, asset in assets.items():
            event = instance.get_latest_materialization_event(asset.key)
            entries = {key: entry.value for key, entry in event.asset_materialization.metadata.items()}
            manifest = made_study.store.read_manifest(name)
            assert entries["spec"] == asset.fields and entries["spec_hash"] == spec_hash(asset.fields)
            inputs = {"/".join(dep) for dep in (*asset.reads, *asset.observed)}
            versions = entries["input_data_versions"]
            # The file of `extra` does not exist.
            assert versions.keys() == inputs and all(versions[one] for one in inputs - {"files/extra"})
            assert packages <= entries["packages"].keys()
            assert {"device", "precision", "seconds", "peak_memory_mib"} <= entries.keys()
            assert {key: entries[key] for key in git_state()} == git_state()
            assert manifest.provenance.run_id == event.run_id
            assert all(len(file.sha256) == 64 for file in manifest.files)
        seeds = {name: made_study.store.read_manifest(name).provenance.seed for name in assets}
    assert seeds["study/baseline_teacher"] == 1000 and seeds["study/mle/student"] == 0
    assert seeds["datasets/toy"] == 0 and seeds["models/tiny"] is None


def test_an_edited_ablation_reruns_alone_then_what_follows(copy):
    config = toy_config(quantile=0.5)
    reasons, _ = stale(copy, config)
    assert set(reasons) == {"study/top/student", "study/ablation_report"}
    code, runs = bring_up_to_date(copy, config)
    assert code == 0
    assert runs[1:] == [
        ["study/top/student"],
        ["study/top/evaluation", "study/top/curriculum", "study/ablation_report"],
    ]
    assert stale(copy, config) == ({}, frozenset())


def test_a_deleted_asset_is_made_again_and_equal_content_keeps_the_rest_fresh(copy):
    (copy.store.path("token_losses/study=study") / "part-0.parquet").unlink()
    assert stale(copy)[0] == {
        "study/token_losses": "is incomplete in the store: token_losses/study=study/part-0.parquet is missing"
    }
    code, runs = bring_up_to_date(copy)
    assert code == 0 and runs[1:] == [["study/token_losses"]]


def test_a_run_of_one_ablation_leaves_the_report_until_the_others_are_made(tmp_path, capfd):
    toy = Toy(tmp_path)
    code, runs = bring_up_to_date(toy, ablations=["mle"])
    out = capfd.readouterr().out
    assert code == 0 and "the report is not rebuilt, because these are not up to date: " in out
    flat = [name for run in runs for name in run]
    assert "study/mle/curriculum" in flat and not any("top" in name or "report" in name for name in flat)


def test_bad_input_fails_with_its_message_and_leaves_no_file(copy, monkeypatch, capfd):
    misbehave(monkeypatch, bad_input="student")
    before = copy.store.path("selections/study=study/ablation=top/part-0.parquet").read_bytes()
    code, runs = bring_up_to_date(copy, toy_config(quantile=0.5))
    out, err = capfd.readouterr()
    assert code == 1 and runs[1:] == [[]]
    assert "failed: student.yaml: row 3: holds no answer; add one\n" in out and "Traceback" not in out + err
    # Evaluation and curriculum of the student, and the report.
    assert out.count("holds no answer") == 1 and out.endswith("\nin study/top/student; 3 assets wait for it\n")
    assert list((copy.store.home / ".staging").iterdir()) == []
    assert copy.store.path("selections/study=study/ablation=top/part-0.parquet").read_bytes() == before
    assert copy.store.is_complete("study/top/student")


def test_independent_failures_of_one_run_are_errors_at_its_end(tmp_path, monkeypatch, capfd):
    """Of a check and of a stage; what depends on neither is still made, and nothing is printed for what waits."""
    misbehave(monkeypatch, spoil="datasets", bad_input="models")
    code, (made,) = bring_up_to_date(Toy(tmp_path))
    out = capfd.readouterr().out
    assert code == 1 and set(made) == {"datasets/toy", "datasets/extra"}
    *_, failure, check = sorted(out.rstrip().split("\n\n"), key=lambda part: "check" in part)
    assert failure == "failed: models.yaml: row 3: holds no answer; add one\nin models/tiny; 14 assets wait for it"
    assert check.startswith("check failed: datasets/toy: no_question_in_two_splits: ")
    assert check.endswith("in datasets/toy; 14 assets wait for it") and "Dependencies for step" not in out


def test_a_crash_keeps_what_was_done_before_it(copy, monkeypatch, capfd):
    misbehave(monkeypatch, crash="token_uncertainty")
    for stage in ("token_losses", "token_uncertainty"):
        copy.store.forget(f"study/{stage}")
    code, runs = bring_up_to_date(copy)
    out = capfd.readouterr().out
    assert code == 1 and runs[1:] == [["study/token_losses"]]
    assert "failed: ended with exit code 1: a bug in the stage" in out
    monkeypatch.delenv("FAKE_STAGE")
    code, runs = bring_up_to_date(copy)
    # First, in a run of its own, the checks that the crash left out.
    assert code == 0 and runs[2:] == [[], ["study/token_uncertainty"]]


@pytest.mark.parametrize(
    "asset, stage, check, follows",
    [
        ("datasets/toy", "datasets", "no_question_in_two_splits", "study/tokenized_dataset"),
        ("study/top/student", "student", "selected_share", "study/top/evaluation"),
    ],
)
def test_a_failed_blocking_check_stops_what_is_downstream(copy, monkeypatch, capfd, asset, stage, check, follows):
    """As an op of its own, and inside the op that also makes what follows."""
    misbehave(monkeypatch, spoil=stage)
    keys = [dg.AssetKey(name.split("/")) for name in (asset, follows)]
    with copy.instance() as instance:
        result = (
            copy.defs()
            .resolve_job_def(STUDY)
            .execute_in_process(instance=instance, asset_selection=keys, raise_on_error=False)
        )
        assert not result.success and made(instance)[-1] == [asset]
    # The next run looks at it again, and goes no further either.
    code, runs = bring_up_to_date(copy)
    assert code == 1 and runs[2:] == [[]]
    assert f"check failed: {asset}: {check}: " in capfd.readouterr().out
    if stage == "student":
        # Repaired, it goes on.
        monkeypatch.delenv("FAKE_STAGE")
        copy.store.forget(asset)
        code, runs = bring_up_to_date(copy)
        assert code == 0 and runs[3][0] == asset and stale(copy) == ({}, frozenset())


def test_a_warning_of_a_check_stops_nothing(copy, monkeypatch, capfd):
    misbehave(monkeypatch, spoil="evaluation")
    copy.store.forget("study/top/evaluation")
    code, runs = bring_up_to_date(copy)
    assert code == 0 and runs[1][0] == "study/top/evaluation"
    assert "warning: study/top/evaluation: quality_in_distribution: toy: 9.000 nats" in capfd.readouterr().out


def test_a_stage_names_its_missing_inputs(tmp_path):
    toy = Toy(tmp_path)
    with toy.instance() as instance:
        result = (
            toy.defs()
            .resolve_job_def(STUDY)
            .execute_in_process(
                instance=instance, asset_selection=[dg.AssetKey([STUDY, "uncertainty_analysis"])], raise_on_error=False
            )
        )
        failure = next(event for event in result.all_events if event.is_step_failure)
    assert "missing inputs: study/token_losses, study/token_uncertainty; materialise them first" in str(
        failure.step_failure_data.user_failure_data.description
    )


def test_runs_are_listed_under_the_study_in_the_ui(made_study):
    with made_study.instance() as instance:
        run = instance.get_runs(limit=1)[0]
    assert run.job_name == STUDY and run.tags[".dagster/repository"] == "__repository__@tokenuq"


def test_a_family_stands_for_its_settings_and_seeds(tmp_path):
    config = toy_config(sweep={"learning_rate": [0.1, 0.2]})
    ablations = config.ablations | {"mle_s1": config.ablations["mle"].model_copy(update={"name": "mle_s1", "seed": 1})}
    study = config.studies[STUDY].model_copy(update={"ablations": ("mle", "mle_s1", "top")})
    config = replace(config, studies={STUDY: with_settings(study, ablations)}, ablations=ablations)
    toy = Toy(tmp_path)
    with toy.instance() as instance:
        runner = StudyRunner(toy.defs(config), config, STUDY, instance, toy.store, CONSOLE)
        students = {
            name: {key.path[1] for key in runner.targets([name]) if key.path[-1] == "student"}
            for name in ("mle", "mle_lr0p1", "mle_lr0p1_s1")
        }
        with pytest.raises(InputError, match="has no ablation 'top_lr3'; it has mle_lr0p1, "):
            runner.targets(["top_lr3"])
    assert students == {
        "mle": {"mle_lr0p1", "mle_lr0p1_s1", "mle_lr0p2", "mle_lr0p2_s1"},
        "mle_lr0p1": {"mle_lr0p1"},
        "mle_lr0p1_s1": {"mle_lr0p1_s1"},
    }
