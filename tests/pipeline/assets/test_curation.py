"""A dataset made from another one by a reviewed file: its place in the graph, and what a changed file makes stale."""

from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest

from tests.support.toy_pipeline import STUDY, Toy, config_with
from tokenuq_ml.config.curated import CuratedEntry, with_curated
from tokenuq_ml.config.load import Config
from tokenuq_ml.tables.parquet import read_table
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.automation.jobs import root_asset_keys
from tokenuq_pipeline.commands import status
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.data_files import file_key, watched
from tokenuq_pipeline.runtime.paths import config_folders

FIRST = "example_id,keep\ntoy/train1,false\n"


def curated_config(folder: Path, review: str = FIRST, **entries: dict) -> Config:
    """The toy study on `clean`: the dataset `toy`, reviewed."""
    config = config_with(folder, dataset="clean")
    (folder / "curation").mkdir(exist_ok=True)
    (folder / "curation" / "reviewed.csv").write_text(review)
    entries = {"clean": {"from": "toy", "curated_by": "reviewed"}, **entries}
    parsed = {name: CuratedEntry(**{**entry, "name": name}) for name, entry in entries.items()}
    origins = {("datasets", name): Path("datasets.yaml") for name in parsed}
    return replace(config, datasets=with_curated({**config.datasets, **parsed}, origins, [folder]))


def stale(toy: Toy, config: Config) -> dict[str, str]:
    with toy.instance() as instance:
        found = status.status_rows(toy.defs(config), config, [STUDY], instance, toy.store)
        return {row["asset"]: row["reason"] for row in found if row["state"] == "stale"}


def made(toy: Toy, config: Config) -> set[str]:
    """Run the study; return what the run made."""
    with toy.instance() as instance:
        before = {run.run_id for run in instance.get_runs()}
        assert run_study(toy.defs(config), config, STUDY, [], instance, toy.store) == 0
        events = dg.DagsterEventType.ASSET_MATERIALIZATION
        return {
            entry.dagster_event.asset_key.to_user_string()
            for run in instance.get_runs()
            if run.run_id not in before
            for entry in instance.all_logs(run.run_id, of_type=events)
        }


def test_lineage_runs_from_the_dataset_and_the_file_to_the_study(tmp_path):
    config = curated_config(tmp_path)
    asset = assets_by_name(config)["datasets/clean"]
    assert asset.deps == (("datasets", "toy"),) and asset.observed == (("curation", "reviewed"),)
    assert asset.fields == {"name": "clean", "from": "toy", "curated_by": "reviewed"}
    graph = Toy(tmp_path / "toy").defs(config).resolve_asset_graph()
    key = dg.AssetKey(["datasets", "clean"])
    assert graph.get(key).parent_keys == {dg.AssetKey(["datasets", "toy"]), dg.AssetKey(["curation", "reviewed"])}
    assert dg.AssetKey([STUDY, "tokenized_dataset"]) in graph.get(key).child_keys
    assert dg.AssetKey(["files", "clean"]) not in graph.get_all_asset_keys()
    roots = {"/".join(key.path) for key in root_asset_keys(config, config.studies[STUDY])}
    assert {"datasets/toy", "datasets/clean", "curation/reviewed"} <= roots


def test_moving_the_file_changes_no_version(tmp_path):
    before = assets_by_name(curated_config(tmp_path))["datasets/clean"].code_version
    (tmp_path / "other").mkdir()
    assert assets_by_name(curated_config(tmp_path / "other"))["datasets/clean"].code_version == before


def test_two_datasets_may_name_one_file(tmp_path):
    config = curated_config(tmp_path, again={"from": "toy", "curated_by": "reviewed"})
    keys = [file_key(config.datasets[name]) for name in watched(config)]
    assert keys.count(dg.AssetKey(["curation", "reviewed"])) == 2
    graph = Toy(tmp_path / "toy").defs(config).resolve_asset_graph()
    assert dg.AssetKey(["curation", "reviewed"]) in graph.get(dg.AssetKey(["datasets", "again"])).parent_keys


def test_the_folder_curation_belongs_to_the_configuration(tmp_path):
    assert config_folders({"TOKENUQ_CONFIG": str(tmp_path)})[-1] == tmp_path


@pytest.mark.slow
def test_a_changed_review_recomputes_the_dataset_and_the_study(tmp_path):
    toy, config = Toy(tmp_path / "toy"), curated_config(tmp_path)
    assert {"datasets/toy", "datasets/clean", f"{STUDY}/tokenized_dataset"} <= made(toy, config)
    tokens = read_table(toy.store.path(f"tokenized_dataset/study={STUDY}")).filter(dataset="clean")
    assert sorted(tokens.filter(split="train")["example_id"]) == ["clean/train0", "clean/train2"]
    assert stale(toy, config) == {}

    # Another file with the same decisions: the dataset is rebuilt, and nothing else.
    config = curated_config(tmp_path, "example_id,keep,remark\ntoy/train1,no,really\n")
    assert stale(toy, config) == {"datasets/clean": "curation/reviewed has changed"}
    assert made(toy, config) == {"datasets/clean"}

    config = curated_config(tmp_path, "example_id,keep\ntoy/train2,no\n")
    remade = made(toy, config)
    assert {"datasets/clean", f"{STUDY}/tokenized_dataset", f"{STUDY}/token_losses"} <= remade
    assert "datasets/toy" not in remade and stale(toy, config) == {}
