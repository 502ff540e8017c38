"""Free space compared with what a run will write: which disk has too little, and for what."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.config import ModelSpec
from tokenuq_ml.disk import DiskFull
from tokenuq_ml.disk_space import Space
from tokenuq_pipeline.commands import disk_space, run
from tokenuq_pipeline.commands.disk_space import RECORDS_BYTES, TEMPORARY_BYTES, disk_needs, require_disk_space
from tokenuq_pipeline.commands.plan_rows import check_disk_space

GB = 10**9
SIZES = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
SIZES |= {"num_attention_heads": 4, "vocab_size": 97, "dtype": "bfloat16"}


def row(asset, stays=0, **passes):
    return {"asset": asset, "state": "missing", "disk": {"x": stays}, "passing_disk": passes}


class Store:
    """A store that holds the assets of `sizes`."""

    def __init__(self, home, **sizes):
        self.home, self._sizes = home, sizes

    def read_manifest(self, asset):
        size = self._sizes.get(asset)
        return SimpleNamespace(files=[SimpleNamespace(bytes=size)]) if size else None


@pytest.fixture
def disks(tmp_path, monkeypatch):
    """Free space of four disks: of the store, of downloads, of Dagster's records, for temporary files."""
    free = dict.fromkeys(("store", "hub", "dagster", "tmp"), 100 * GB)
    for name in free:
        (tmp_path / name).mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(disk_space, "temporary_folder", lambda: tmp_path / "tmp")

    def space(path):
        return Space(Path(path), Path(path), 100 * GB, free[Path(path).name], None)

    monkeypatch.setattr(disk_space, "space", space)
    return free


def needed(rows, store):
    return {need.disk.place.name: need.bytes for need in disk_needs(rows, store)}


def test_each_disk_needs_what_goes_there(disks, tmp_path):
    rows = [row("models/m", 2 * GB, **{"the hub's cache": 3 * GB}), row("s/a/student", GB, checkpoints=4 * GB)]
    assert needed(rows, Store(tmp_path / "store")) == {
        "store": 7 * GB,
        "hub": 3 * GB,
        "dagster": 2 * RECORDS_BYTES,
        "tmp": TEMPORARY_BYTES,
    }
    assert disk_needs([], Store(tmp_path / "store")) == []


def test_checkpoints_and_older_versions_give_their_space_back(disks, tmp_path):
    rows = [row(f"s/{name}/student", GB, checkpoints=4 * GB) for name in "abc"]
    assert needed(rows, Store(tmp_path / "store"))["store"] == 7 * GB
    replaced = Store(tmp_path / "store", **{"s/a/student": GB, "s/b/student": GB, "s/c/student": GB})
    assert needed(rows, replaced)["store"] == 5 * GB


def test_one_disk_for_all_needs_the_sum(disks, tmp_path, monkeypatch):
    monkeypatch.setattr(disk_space, "space", lambda path: Space(Path(path), tmp_path, 100 * GB, GB, None))
    (need,) = disk_needs([row("s/x", GB)], Store(tmp_path / "store"))
    assert need.bytes == GB + RECORDS_BYTES + TEMPORARY_BYTES


@pytest.mark.parametrize(
    "disk, what",
    [
        ("store", "7.0 GB are needed"),
        ("hub", "3.0 GB for the download of models/m"),
        ("dagster", "500.0 kB for Dagster's records"),
        ("tmp", "temporary files"),
    ],
)
def test_the_disk_with_too_little_is_named(disks, tmp_path, disk, what):
    rows = [row("models/m", 2 * GB, **{"the hub's cache": 3 * GB}), row("s/a/student", GB, checkpoints=4 * GB)]
    require_disk_space(rows, Store(tmp_path / "store"))
    disks[disk] = 1000
    with pytest.raises(DiskFull) as error:
        require_disk_space(rows, Store(tmp_path / "store"))
    said = str(error.value)
    assert said.startswith(f"the disk at {tmp_path / disk} has too little space: about ") and what in said
    assert said.endswith("1.0 kB of 100.0 GB are free; make space, or run with --ignore-disk-space: it is an estimate")


@pytest.mark.slow
def test_a_run_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    toy, config = Toy(tmp_path), toy_config()
    config.models["tiny"] = ModelSpec(name="tiny", source="path", path="/nowhere", config=SIZES)
    asked = []

    def check(assets):
        asked.append(assets)
        check_disk_space(config, STUDY, assets, toy.store)

    monkeypatch.setattr("tokenuq_pipeline.commands.disk_space.TEMPORARY_BYTES", 10**18)
    with toy.instance() as instance, pytest.raises(DiskFull, match="temporary files"):
        run.run_study(toy.defs(config), config, STUDY, [], instance, toy.store, check)
    assert len(asked) == 1 and f"{STUDY}/baseline_teacher" in asked[0] and "models/tiny" in asked[0]
    assert toy.store.assets() == [] and os.environ.get("FAKE_STAGE") is None
