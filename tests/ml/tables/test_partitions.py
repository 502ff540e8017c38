"""Only the files of complete assets count."""

import shutil

import pytest

from tests.support.tiny_store import make_store
from tokenuq_ml.tables.partitions import complete_files, partition_of, store_home
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_pipeline.runtime.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("made") / "store").home


@pytest.fixture
def store(made, tmp_path):
    return Store(shutil.copytree(made, tmp_path / "store"))


def places(store, table):
    return [path.relative_to(store.home / table).parent.as_posix() for path in complete_files(store.home)[table]]


def test_every_file_of_complete_assets_is_listed_in_order(store):
    assert places(store, "token_losses") == ["study=other", "study=quickstart"]
    assert (
        places(store, "selections")[0] == "study=other/ablation=masked_mle_top25"
        and len(places(store, "selections")) == 6
    )
    assert places(store, "curriculum") == [] and set(complete_files(store.home)) == set(TABLES)
    (path,) = complete_files(store.home)["examples"]
    assert partition_of(path, "examples") == {"dataset": "toy"}


def test_assets_that_are_being_replaced_or_written_are_not_listed(store):
    store.forget("other/token_losses")
    assert places(store, "token_losses") == ["study=quickstart"]
    (store.home / "token_losses/study=third").mkdir()
    (store.home / "token_losses/study=third/part-0.parquet").write_bytes(b"PAR1")
    staged = store.home / ".staging/1-2-x/token_losses/study=fourth"
    staged.mkdir(parents=True)
    (staged / "part-0.parquet").write_bytes(b"PAR1")
    assert places(store, "token_losses") == ["study=quickstart"]


def test_an_asset_is_incomplete_without_all_its_files_in_their_sizes(store):
    path = store.home / "token_uncertainty/study=other/part-0.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert places(store, "token_uncertainty") == ["study=quickstart"]
    path.write_bytes(whole)
    assert places(store, "token_uncertainty") == ["study=other", "study=quickstart"]
    path.unlink()
    assert places(store, "token_uncertainty") == ["study=quickstart"]


@pytest.mark.parametrize("text", ["{}", "[]", "{", '{"files": [{"path": "x"}]}'])
def test_an_asset_with_a_damaged_manifest_is_incomplete(store, text):
    for manifest in (store.home / ".manifests/other").rglob("*.json"):
        manifest.write_text(text)
    assert places(store, "token_losses") == ["study=quickstart"]


def test_a_pipelines_store_without_manifests_has_no_files(store):
    (store.home / ".manifests").rename(store.home / "elsewhere")
    assert not any(complete_files(store.home).values())


def test_all_files_count_in_a_folder_that_no_pipeline_writes_to(store):
    (store.home / ".manifests").rename(store.home / "elsewhere")
    (store.home / ".staging").rmdir()
    assert places(store, "token_losses") == ["study=other", "study=quickstart"]


def test_a_link_in_the_place_of_a_folder_leaves_out_that_asset_alone(store, tmp_path):
    folder = store.home / "token_losses/study=other"
    folder.rename(tmp_path / "outside")
    folder.symlink_to(tmp_path / "outside")
    assert places(store, "token_losses") == ["study=quickstart"]
    assert places(store, "token_uncertainty") == ["study=other", "study=quickstart"]


def test_the_environment_names_the_store(tmp_path, monkeypatch):
    assert store_home().name == "store"
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path))
    assert store_home() == tmp_path.resolve() and store_home(tmp_path / "x") == tmp_path.resolve() / "x"
