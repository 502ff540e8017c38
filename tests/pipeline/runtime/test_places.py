"""A manifest refers to folders of its own asset, and to nothing else."""

import json
import os
import shutil
from pathlib import PurePosixPath

import pytest

from tests.support.manifests import complete, write
from tests.support.shipped_studies import one_of_each
from tests.support.tiny_store import manifest
from tests.support.toy_pipeline import toy_config
from tokenuq_ml.tables.partitions import FORGET
from tokenuq_pipeline.assets.graph import stage_groups
from tokenuq_pipeline.runtime.manifest import Manifest
from tokenuq_pipeline.runtime.places import check_asset_name, check_places
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.store_layout import worker_of

ASSET, PLACE = "s/a/student", "student/study=s/ablation=a/adapter"


@pytest.fixture
def store(tmp_path):
    """A store with one asset, whose place holds one file; next to it, a folder that is not the store's."""
    store = Store(tmp_path / "store")
    folder = store.path(PLACE)
    folder.mkdir(parents=True)
    (folder / "weights").write_text("x")
    complete(store, manifest(ASSET, outputs={"adapter": PLACE}, plots={"P": "adapter/p.png"}))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    return store


def alter(store, written_as=ASSET, **parts):
    path = store.home / ".manifests" / f"{ASSET}.json"
    content = {**json.loads(path.read_text()), **parts}
    path = store.home / ".manifests" / f"{written_as}.json"
    write(path, content)
    return path


def refusal(path):
    with pytest.raises(ValueError) as error:
        Manifest.read(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ") and said.endswith(f"; {FORGET}") and "\n" not in said
    return said.removeprefix(f"{path}: ").removesuffix(f"; {FORGET}")


@pytest.mark.parametrize("config", [toy_config(), one_of_each()], ids=["toy", "shipped"])
def test_every_configured_asset_has_places_of_its_own(config):
    groups = stage_groups(config)
    assets = {asset.name: asset for group in groups for asset in group.assets}
    for name, asset in assets.items():
        check_places(name, asset.outputs, [f"{place}/file" for place in asset.outputs.values()])
    places = [place for asset in assets.values() for place in asset.outputs.values()]
    assert len(set(places)) == len(places)
    parents = {str(parent) for place in places for parent in PurePosixPath(place).parents}
    assert not parents & set(places)
    for group in groups:
        assert {worker_of(asset.name) for asset in group.assets} == {group.assets[0].name}


@pytest.mark.parametrize(
    "place",
    [
        "",
        ".",
        "..",
        "../outside",
        "/tmp",
        "student",
        "student/study=s",
        "student/study=s/ablation=a",
        "student/study=s/ablation=b/adapter",
        "student/study=other/ablation=a/adapter",
        "student/study=s/ablation=a/adapter/",
        "student//study=s/ablation=a/adapter",
        "student/./study=s/ablation=a/adapter",
        "student/study=s/ablation=a/adapter/../../ablation=b/adapter",
        "student/study=s/ablation=a/adapter\n",
        "selections/study=s/ablation=a",
        "training_log/study=s/ablation=teacher",
        ".manifests",
        ".checkpoints/s/a/student",
        ".trash",
    ],
)
def test_a_place_that_is_not_the_output_s_own_is_refused(store, place):
    said = refusal(alter(store, outputs={"adapter": place}, files=[], plots={}))
    assert said == f"outputs.adapter: {place!r} is not a folder of {ASSET}, whose adapter is {PLACE}"
    assert store.read_manifest(ASSET) is None and "is not a folder of" in store.incomplete_because(ASSET)


def test_an_output_or_a_stage_that_no_asset_has_is_refused(store):
    assert "s/a/student has no output 'x': it has" in refusal(alter(store, outputs={"x": PLACE}, files=[], plots={}))
    path = alter(store, "s/evil", asset="s/evil", outputs={"token_losses": "token_losses/study=s"}, files=[], plots={})
    assert refusal(path) == "s/evil has no output 'token_losses': no stage of this name has outputs"
    path = alter(store, "s/evil", asset=ASSET)
    assert refusal(path) == "is the manifest of 's/a/student', not of s/evil"


@pytest.mark.parametrize(
    "file",
    [
        "../outside/precious",
        "/etc/passwd",
        "",
        PLACE,
        f"{PLACE}/../selections",
        f"{PLACE}//weights",
        f"{PLACE}/",
        f"{PLACE}/\0",
        f"{PLACE}x/weights",
        "student/study=s/ablation=b/adapter/weights",
        f"./{PLACE}/weights",
    ],
)
def test_a_file_outside_the_asset_s_folders_is_refused(store, file):
    said = refusal(alter(store, files=[{"path": file, "bytes": 1, "sha256": "0" * 64}]))
    assert said == f"files: {file!r} is in none of the asset's folders"


@pytest.mark.parametrize("plot", ["adapter/../../../../outside/p.png", "/etc/passwd", "plots/p.png", "p.png/"])
def test_a_picture_outside_the_asset_s_outputs_is_refused(store, plot):
    """It would be embedded in the metadata that the UI shows."""
    assert f"plots: {plot!r} is in none" in refusal(alter(store, plots={"P": plot}))


@pytest.mark.parametrize(
    "linked", ["student", "student/study=s", PLACE, f"{PLACE}/weights", ".manifests", ".manifests/s/a"]
)
def test_a_symbolic_link_at_any_level_is_refused(store, linked):
    """Also one that points into the store."""
    aside = store.home / "aside"
    os.rename(store.path(linked), aside)
    store.path(linked).symlink_to(aside)
    said = refusal(store.home / ".manifests" / f"{ASSET}.json")
    assert said.startswith(f"{store.path(linked)} is a symbolic link; replace it by a copy")
    assert not store.is_complete(ASSET)


def test_a_link_to_the_whole_store_and_a_copy_of_it_are_read(store, tmp_path):
    (tmp_path / "link").symlink_to(store.home)
    assert Store(tmp_path / "link").is_complete(ASSET)
    shutil.copytree(store.home, tmp_path / ".manifests" / "copy")
    assert Store(tmp_path / ".manifests" / "copy").is_complete(ASSET)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "s",
        "..",
        "../x",
        "s/..",
        "s/../../x",
        "/s/a",
        "s/a/",
        "s//a",
        "s/./a",
        "a/b/c/d",
        "s/A",
        "s/a\n",
        "s/.a",
        "s/a\0",
    ],
)
def test_a_name_that_could_leave_the_store_is_not_an_asset_s(store, name):
    with pytest.raises(ValueError, match="is not the name of an asset"):
        check_asset_name(name)
    with pytest.raises(ValueError, match="is not the name of an asset"):
        store.work_dir(name)
    assert store.read_manifest(name) is None and not store.is_complete(name)
    assert "is not the name of an asset" in store.incomplete_because(name)
    assert "is not the name of an asset" in store.problems(name)[0]
