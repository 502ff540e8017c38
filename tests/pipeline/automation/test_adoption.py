"""What the store holds and Dagster does not know is reported, not made again."""

import os
import threading

import dagster as dg
import pytest

from tests.support.manifests import complete
from tests.support.store_actions import interrupt
from tests.support.toy_pipeline import STUDY, config_with, toy_config
from tokenuq_ml.stages import versions
from tokenuq_pipeline.assets.checks import table_checks
from tokenuq_pipeline.automation.adoption import adopt, checks_by_asset
from tokenuq_pipeline.automation.staleness import Records, staleness, study_keys
from tokenuq_pipeline.commands import run as run_command
from tokenuq_pipeline.runtime.dagster_internals import (
    StaleStatus,
    input_data_version_tag,
    passed_on_latest,
    stale_status_resolver,
)
from tokenuq_pipeline.runtime.data_files import observe

pytestmark = pytest.mark.slow


@pytest.fixture
def toy(made_study_with_file, tmp_path):
    """A copy of the store, with an empty `DAGSTER_HOME`."""
    copy = made_study_with_file.copy(tmp_path / "toy")
    os.rename(copy.folder / "dagster_home", copy.folder / "old_home")
    return copy


@pytest.fixture
def with_records(made_study_with_file, tmp_path):
    """A copy of the store, with the records of the run that made it."""
    return made_study_with_file.copy(tmp_path / "recorded")


@pytest.fixture
def config(made_study_with_file):
    return config_with(made_study_with_file.folder.parent)


def records_of(toy, config, instance):
    return Records.of(toy.defs(config).resolve_asset_graph(), config, instance, toy.store)


def adopted(toy, config, instance, **options):
    observe(config, instance, toy.store)
    records = records_of(toy, config, instance)
    checks = checks_by_asset(table_checks(config))
    return adopt(records, study_keys(records.assets, STUDY), checks, **options)


def run(toy, config):
    """The exit code of `tokenuq run`, and the names of what each of its runs made."""
    with toy.instance() as instance:
        before = {one.run_id for one in instance.get_runs()}
        code = run_command.run_study(toy.defs(config), config, STUDY, [], instance, toy.store)
        made = [
            {entry.dagster_event.asset_key.to_user_string() for entry in materialisations(instance, one.run_id)}
            for one in reversed(instance.get_runs())
            if one.run_id not in before
        ]
    return code, made


def materialisations(instance, run_id):
    return instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)


def dagsters_view(toy, config, instance):
    """The assets that Dagster does not take for fresh, and the checks that have not passed."""
    graph = toy.defs(config).resolve_asset_graph()
    resolver = stale_status_resolver(instance, graph)
    stale = {key for key in graph.materializable_asset_keys if resolver.get_status(key) != StaleStatus.FRESH}
    return stale, {key for key, passed in passed_on_latest(instance, graph.asset_check_keys).items() if not passed}


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_new_dagster_home_is_told_of_the_whole_store(toy, config):
    with toy.instance() as instance:
        found = adopted(toy, config, instance)
        assert len(found.adopted) == 17 and not (found.refused or found.stale or found.failed_checks)
        assert dagsters_view(toy, config, instance) == (set(), set())
        records = records_of(toy, config, instance)
        assert not staleness(records, records.assets).unrecorded
        event = instance.get_latest_materialization_event(dg.AssetKey([STUDY, "token_losses"])).asset_materialization
        assert adopted(toy, config, instance).adopted == []
    manifest = toy.store.read_manifest(f"{STUDY}/token_losses")
    shown = {name: event.metadata[name].value for name in ("adopted", "made_by_run", "made_at", "dagster/row_count")}
    made = manifest.provenance
    assert shown == {
        "adopted": True,
        "made_by_run": made.run_id,
        "made_at": made.made_at,
        "dagster/row_count": 27,
    }
    assert run(toy, config) == (0, [])


def test_a_damaged_file_is_not_adopted_and_stops_the_run_in_words(toy, config, capfd):
    path, student = toy.store.path(f"selections/study={STUDY}/ablation=top/part-0.parquet"), f"{STUDY}/top/student"
    flip_a_byte(path)
    assert run(toy, config) == (1, [])
    out = capfd.readouterr().out
    assert f"damaged: {path}: its SHA-256 begins with " in out and "tokenuq verify --forget" in out
    # What was made from it waits, and all else is adopted.
    assert "13 assets of the store adopted into Dagster's records in " in out
    with toy.instance() as instance:
        assert instance.get_latest_materialization_event(dg.AssetKey(student.split("/"))) is None
        found = adopted(toy, config, instance)
        assert list(found.damaged) == [student] and str(path) in found.damaged[student]
        assert found.refused[f"{STUDY}/top/evaluation"] == f"waits for {student}, which is not up to date"
    toy.store.forget(student)
    # Made again with the same content: what follows it is adopted.
    assert run(toy, config) == (0, [{student}])


def test_a_publication_that_was_killed_is_completed_and_nothing_is_made_again(toy, config, capfd):
    teacher, before = f"{STUDY}/baseline_teacher", toy.store.read_manifest(f"{STUDY}/baseline_teacher")
    interrupt(toy.store, teacher)
    reason = "its publication was interrupted, and the next run completes it"
    assert toy.store.read_manifest(teacher) is None and toy.store.incomplete_because(teacher) == reason
    assert run(toy, config) == (0, [])
    assert f"{teacher}: its publication was interrupted, and has been completed" in capfd.readouterr().out
    assert toy.store.read_manifest(teacher) == before and toy.store.problems(teacher) == []


def test_a_table_that_cannot_be_read_is_left_out_where_files_are_compared_by_size(toy, config):
    """As at the start of the UI."""
    path, key = toy.store.path("examples/dataset=toy/part-0.parquet"), dg.AssetKey(["datasets", "toy"])
    path.write_bytes(b"x" * path.stat().st_size)
    with toy.instance() as instance:
        found = adopt(records_of(toy, config, instance), [key], verify=False)
    assert not found.adopted and found.refused["datasets/toy"].startswith("cannot be read: ")


def test_a_dataset_whose_files_are_gone_is_adopted_once(made_study, tmp_path):
    toy, key = made_study.copy(tmp_path / "toy"), dg.AssetKey(["datasets", "extra"])
    os.rename(toy.folder / "dagster_home", toy.folder / "old_home")
    with toy.instance() as instance:
        for adopted in (["datasets/extra"], []):
            assert adopt(records_of(toy, toy_config(), instance), [key]).adopted == adopted


def test_what_has_another_spec_is_made_again_and_only_that(toy, config, monkeypatch):
    monkeypatch.setitem(versions.REVISIONS, "token_losses", 99)
    assert run(toy, config) == (0, [{f"{STUDY}/token_losses"}])


def test_records_of_other_edges_are_replaced(with_records, config):
    """Dagster calls an asset stale whose record names an input that is no longer drawn."""
    key = dg.AssetKey([STUDY, "top", "evaluation"])
    with with_records.instance() as instance:
        tags = dict(instance.get_latest_materialization_event(key).asset_materialization.tags)
        tags[input_data_version_tag(dg.AssetKey(["models", "tiny"]))] = "x"
        instance.report_runless_asset_event(dg.AssetMaterialization(key, tags=tags))
        assert dagsters_view(with_records, config, instance)[0] == {key}
        assert adopted(with_records, config, instance).adopted == [f"{STUDY}/top/evaluation"]
        assert dagsters_view(with_records, config, instance) == (set(), set())
    assert run(with_records, config) == (0, [])


def test_a_killed_run_loses_nothing_between_a_manifest_and_its_event(with_records, config):
    name = f"{STUDY}/top/student"
    manifest = with_records.store.read_manifest(name)
    complete(with_records.store, manifest.model_copy(update={"data_version": "newer"}))
    code, made = run(with_records, config)
    assert code == 0 and made[0] == {f"{STUDY}/top/evaluation", f"{STUDY}/top/curriculum", f"{STUDY}/ablation_report"}
    with with_records.instance() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey(name.split("/"))).asset_materialization
    assert event.tags["dagster/data_version"] == "newer"


def test_two_at_once_do_no_harm(toy, config):
    few = [("models", "tiny"), ("datasets", "toy")]
    with toy.instance() as one, toy.instance() as other:

        def adopt_few(instance):
            adopt(records_of(toy, config, instance), map(dg.AssetKey, few), checks_by_asset(table_checks(config)))

        threads = [threading.Thread(target=adopt_few, args=(instance,)) for instance in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stale, failed = dagsters_view(toy, config, one)
        assert not {path for path in few if dg.AssetKey(path) in stale | {check.asset_key for check in failed}}
