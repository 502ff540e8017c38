"""What differs from its manifest is named, with what repairs it."""

import hashlib
import os
import re
import shutil

import pytest

from tests.support.manifests import complete
from tests.support.tiny_store import make_store
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.integrity import damage_of, damage_of_table, damages
from tokenuq_ml.tables.scanning import scan
from tokenuq_pipeline.runtime.store import Store

LOSSES = "token_losses/study=other/part-0.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("made") / "store").home


@pytest.fixture
def store(made, tmp_path):
    return Store(shutil.copytree(made, tmp_path / "store"))


def flip(path, at=200):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_files_as_recorded(store):
    files = sorted(store.home.rglob("*.parquet"))
    assert len(files) > 20 and damages(store.home, files) == {}
    assert damage_of(store.home, LOSSES) is None and damage_of(store.home, store.home / LOSSES) is None


def flipped(path):
    flip(path)
    return r"its SHA-256 begins with \w{12}, not \w{12}"


def shorter(path):
    path.write_bytes(path.read_bytes()[:-1])
    return "has [0-9]+ bytes, not [0-9]+"


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0")
    return "has [0-9]+ bytes, not [0-9]+"


def missing(path):
    path.unlink()
    return "is missing"


def linked(path):
    path.rename(path.with_name("copy"))
    path.symlink_to("copy")
    return "is a symbolic link"


def folder(path):
    path.unlink()
    path.mkdir()
    return "is not a file"


def fifo(path):
    path.unlink()
    os.mkfifo(path)
    return "is not a file"


def second_part(path):
    path.with_name("part-1.parquet").write_bytes(path.read_bytes())
    return "part-1.parquet does not belong to other/token_losses"


DAMAGES = [flipped, shorter, longer, missing, linked, folder, fifo, second_part]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_the_command_that_mends_it(store, damage):
    says = damage(store.home / LOSSES)
    of_table = damage_of_table(store.home, "token_losses"), damage_of_table(store.home, "token_losses", study="other")
    for sentence in (damage_of(store.home, LOSSES), *of_table):
        assert sentence.startswith(str(store.home / "token_losses/study=other")) and "verify --forget" in sentence
        assert re.search(says, sentence) and "\n" not in sentence
    assert damage_of_table(store.home, "token_losses", study="quickstart") is None
    assert damage_of_table(store.home, "token_uncertainty") is None


def test_a_file_is_read_once(store, monkeypatch):
    reads, real = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: reads.append(file.name) or real(file, name))
    monkeypatch.setattr("tokenuq_ml.file_hashes._RECENT_S", -1)
    for _ in range(3):
        assert damage_of(store.home, LOSSES) is None and damage_of_table(store.home, "token_losses") is None
    assert len(reads) == 2  # one of each study


def test_an_asset_that_is_published_meanwhile_is_not_damaged(store):
    assert damage_of(store.home, LOSSES) is None
    flip(store.home / LOSSES)
    assert damage_of(store.home, LOSSES) is not None
    # As a stage does it: with the new content comes a new manifest.
    complete(store, store.read_manifest("other/token_losses"))
    assert damage_of(store.home, LOSSES) is None
    store.forget("other/token_losses")
    assert "belongs to no complete asset" in damage_of(store.home, LOSSES)


def test_files_of_a_damaged_manifest_are_named_by_it(store):
    manifest = store.home / ".manifests/other/token_losses.json"
    manifest.write_bytes(b"\xff")
    sentence = damage_of_table(store.home, "token_losses")
    assert sentence.startswith(f"{manifest}: is not UTF-8") and "`tokenuq verify --forget`" in sentence
    for table in ("token_uncertainty", "selections", "evaluations", "examples"):
        assert damage_of_table(store.home, table) is None
    manifest.unlink()
    # What is left of an asset that was forgotten is not read, and is in nobody's way.
    assert damage_of_table(store.home, "token_losses") is None


def test_a_folder_that_no_pipeline_writes_to_has_no_records(store):
    (store.home / ".manifests").rename(store.home / "elsewhere")
    (store.home / ".staging").rmdir()
    flip(store.home / LOSSES)
    assert damage_of(store.home, LOSSES) is None and damage_of_table(store.home, "token_losses") is None
    linked(store.home / LOSSES)
    assert "is a symbolic link; remove it" in damage_of_table(store.home, "token_losses")


def test_a_frame_is_not_made_of_a_damaged_table(store):
    flip(store.home / LOSSES)
    for partitions in ({}, {"study": "other"}, {"study": ["other", "quickstart"]}):
        with pytest.raises(InputError, match="^table token_losses is damaged: .*its SHA-256 begins with"):
            scan("token_losses", store.home, **partitions)
    with pytest.raises(InputError, match="token_losses is damaged"):
        scan("tokens", store.home)
    assert len(scan("token_losses", store.home, study="quickstart").collect())
    missing(store.home / LOSSES)
    with pytest.raises(InputError, match="is missing; `tokenuq verify --forget`"):
        scan("token_losses", store.home, study="other")
    with pytest.raises(FileNotFoundError):
        scan("token_losses", store.home, study="third")
