"""`tokenuq verify --forget`: every damage is named, and repaired so that only what has to be made is made again."""

import json
import os
import re
import shutil

import pytest

from tests.support.manifests import complete, edit, write
from tests.support.tiny_store import examples, publish
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.integrity import damage_of_table
from tokenuq_ml.tables.partitions import DIGEST, complete_files
from tokenuq_pipeline import cli
from tokenuq_pipeline.runtime.repair import damage, other_damage, repair, require_undamaged
from tokenuq_pipeline.runtime.store import Store

ASSET, OTHER = "datasets/toy", "datasets/other"
TABLE = "examples/dataset=toy/part-0.parquet"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    home = tmp_path_factory.mktemp("made") / "store"
    for name in (ASSET, OTHER):
        frames = {"examples": examples()}
        publish(Store(home), name, frames, dataset=name.removeprefix("datasets/"))
    return home


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "store")
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    return Store(tmp_path / "store")


CHANGED = "has been changed since it was written"


def manifest(store):
    return store.home / ".manifests" / f"{ASSET}.json"


def text(old, new):
    def change(path):
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def in_place_of(make):
    def change(path):
        path.unlink()
        make(path)

    return change


MANIFESTS = {
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:200]), "is not JSON"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "is not JSON"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff" + path.read_bytes()), "is not UTF-8"),
    "a list": (lambda path: path.write_text("[]"), "the file: Input should be"),
    "null": (lambda path: path.write_text("null"), "the file: Input should be"),
    "a number": (lambda path: path.write_text("3"), "the file: Input should be"),
    "nested": (lambda path: path.write_text("[" * 100_000), "is nested too deeply"),
    "files of null": (lambda path: path.write_text('{"files": null}'), "asset: Field required"),
    "a number for text": (text('"data_version": "d"', '"data_version": 3'), "data_version: Input should be"),
    "text for a number": (text('"bytes": ', '"bytes": "1", "was": '), "files.0.bytes: Input should be"),
    "a negative size": (text('"bytes": ', '"bytes": -'), "files.0.bytes: Input should be"),
    "a short hash": (text('"sha256": "', '"sha256": "abc", "was": "'), "files.0.sha256: String should match"),
    "NaN": (text('"metrics": {}', '"metrics": {"a": NaN}'), "is not JSON: NaN"),
    "a key twice": (text('"metrics"', '"metrics": {}, "metrics"'), "is not JSON: the key 'metrics' is given twice"),
    "another asset": (text(f'"asset": "{ASSET}"', f'"asset": "{OTHER}"'), f"is the manifest of '{OTHER}'"),
    "another version": (text('"data_version": "d"', '"data_version": "e"'), CHANGED),
    "an input less": (text('"input_data_versions": {', '"input_data_versions": {"x": "y"'), CHANGED),
    "another digest": (text('"manifest_sha256": "', '"manifest_sha256": "0'), CHANGED),
    "no digest but its key": (text('"manifest_sha256": "', '"manifest_sha256": null, "was": "'), CHANGED),
    "half a surrogate": (text('"data_version": "d"', '"data_version": "\\ud800"'), "holds half of a surrogate pair"),
    "a folder": (in_place_of(lambda path: (path / "x").mkdir(parents=True)), "is a folder, not a file"),
    "an empty folder": (in_place_of(lambda path: path.mkdir()), "is a folder, not a file"),
    "a link": (in_place_of(lambda path: path.symlink_to("/dev/zero")), "is a symbolic link, not a file"),
    "a link to nothing": (in_place_of(lambda path: path.symlink_to("nothing")), "is a symbolic link, not a file"),
    "a FIFO": (in_place_of(os.mkfifo), "is a FIFO, not a file"),
}


@pytest.mark.parametrize("change, says", MANIFESTS.values(), ids=MANIFESTS)
def test_a_damaged_manifest_is_one_sentence_and_is_forgotten(store, capsys, change, says):
    path = manifest(store)
    change(path)
    for sentence in (store.damaged_manifest(ASSET), store.incomplete_because(ASSET), *store.problems(ASSET)):
        assert f"{path}: {says}" in sentence and "`tokenuq verify --forget`" in sentence and "\n" not in sentence
    assert store.read_manifest(ASSET) is None and not store.is_complete(ASSET) and store.extra_files(ASSET) == []
    assert cli.main(["verify"]) == 1 and cli.main(["verify", "--forget"]) == 1
    out, err = capsys.readouterr()
    assert out.count(f"{ASSET}: has no readable manifest: {path}: {says}") == 2 and err == ""
    assert store.incomplete_because(ASSET) == "has no manifest" and not os.path.lexists(path)
    assert store.problems(OTHER) == [] and cli.main(["verify"]) == 0


def test_any_changed_byte_of_a_manifest_is_found_or_changes_nothing(store):
    path, before = manifest(store), store.read_manifest(ASSET)
    content = path.read_bytes()
    for number in range(len(content)):
        path.write_bytes(content[:number] + bytes([content[number] ^ 1]) + content[number + 1 :])
        after = store.read_manifest(ASSET)
        files = complete_files(store.home)["examples"]
        # What still reads the same is a changed name of the digest, or white space.
        assert after in (None, before) and len(files) == (2 if after else 1), content[number - 9 : number + 9]


def test_a_manifest_of_an_earlier_version_has_no_digest_and_is_read(store):
    path, before = manifest(store), store.read_manifest(ASSET)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != DIGEST}))
    assert store.read_manifest(ASSET) == before and store.problems(ASSET) == []
    assert len(complete_files(store.home)["examples"]) == 2 and damage_of_table(store.home, "examples") is None


def test_a_manifest_without_permission_is_one_sentence(store, monkeypatch):
    real = os.open

    def refuse(path, *arguments, **options):
        if str(path) == str(manifest(store)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert f"{manifest(store)}: cannot be read (Permission denied); `tokenuq verify" in store.problems(ASSET)[0]
    assert store.is_complete(OTHER)


@pytest.mark.parametrize("name", ["datasets/Toy set.json", "toy.json", "datasets/a/b/c/d.json"])
def test_a_manifest_of_a_name_that_no_asset_has_is_forgotten(store, name):
    path = store.home / ".manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(manifest(store), path)
    assert cli.main(["verify"]) == 1 and cli.main(["verify", "--forget"]) == 1 and cli.main(["verify"]) == 0
    assert not path.exists() and store.is_complete(ASSET)


FILES = {
    "flipped": (lambda path: path.write_bytes(b"x" * path.stat().st_size), "its SHA-256 begins with"),
    "shorter": (lambda path: path.write_bytes(b"x"), "has 1 bytes, not"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "a folder": (in_place_of(lambda path: path.mkdir()), "is not a file"),
    "a FIFO": (in_place_of(os.mkfifo), "is not a file"),
    "a link": (in_place_of(lambda path: path.symlink_to("/etc/passwd")), "is a symbolic link"),
}


@pytest.mark.parametrize("change, says", FILES.values(), ids=FILES)
def test_a_damaged_file_costs_its_asset_the_manifest(store, change, says):
    change(store.path(TABLE))
    (problem,) = store.problems(ASSET)
    assert TABLE in problem and says in problem
    assert repair(store, ASSET) == "its manifest is deleted, and the next run makes it again"
    assert store.incomplete_because(ASSET) == "has no manifest" and store.problems(OTHER) == []


def test_a_file_that_no_manifest_lists_goes_to_the_trash_and_nothing_is_made_again(store):
    extra = store.path(TABLE).with_name("part-1.parquet")
    shutil.copy(store.path(TABLE), extra)
    link = store.path(TABLE).with_name("link")
    link.symlink_to("/etc")
    assert store.problems(ASSET) == [
        f"examples/dataset=toy/{name}: does not belong to the asset" for name in ("link", "part-1.parquet")
    ]
    assert store.is_complete(ASSET) and "2 files moved to" in repair(store, ASSET)
    assert store.problems(ASSET) == [] and not os.path.lexists(link) and not extra.exists()
    assert len(list((store.home / ".trash").rglob("part-1.parquet"))) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", None])
def test_damaged_fingerprints_are_deleted(store, capsys, content):
    path = store.home / ".fingerprints.json"
    (path / "x").mkdir(parents=True) if content is None else path.write_bytes(content)
    assert len(other_damage(store)) == 1 and cli.main(["verify"]) == 1
    assert f"{path}: " in capsys.readouterr().out
    assert cli.main(["verify", "--forget"]) == 1 and cli.main(["verify"]) == 0 and not path.exists()


def test_leftovers_of_dead_runs_are_deleted(store):
    left = store.home / ".staging/1-1-x/request.json"
    left.parent.mkdir(parents=True)
    left.write_text("{")
    cli.main(["verify"])
    assert left.exists()
    cli.main(["verify", "--forget"])
    assert not left.exists()


def test_status_names_extra_files_and_with_deep_every_damage(store):
    assert damage(store, ASSET, deep=False) is None and damage(store, ASSET, deep=True) is None
    content = store.path(TABLE).read_bytes()
    store.path(TABLE).write_bytes(b"x" * len(content))
    assert damage(store, ASSET, deep=False) is None
    assert re.fullmatch(
        rf"{TABLE}: its SHA-256 .*; `tokenuq verify --forget`, then .*", damage(store, ASSET, deep=True)
    )
    store.path(TABLE).write_bytes(content)
    shutil.copy(store.path(TABLE), store.path(TABLE).with_name("part-1.parquet"))
    for deep in (False, True):
        said = damage(store, ASSET, deep)
        assert said.endswith(
            "part-1.parquet: does not belong to the asset; `tokenuq verify --forget` moves it to the trash"
        )


def test_a_manifest_that_has_lost_an_entry_costs_no_file(store):
    path, table = manifest(store), store.path(TABLE)
    # The manifest is written after the files.
    more = table.with_name("more")
    more.write_bytes(b"x")
    complete(store, store.read_manifest(ASSET))
    content = json.loads(path.read_text())
    content["files"] = [file for file in content["files"] if not file["path"].endswith("more")]
    write(path, content)
    assert store.problems(ASSET) == ["examples/dataset=toy/more: does not belong to the asset"]
    assert repair(store, ASSET) == "its manifest is deleted, and the next run makes it again" and more.exists()


def test_a_manifest_without_files_is_damaged(store):
    path = manifest(store)
    edit(path, files=[])
    assert "lists no file; `tokenuq verify --forget`" in store.problems(ASSET)[0] and not store.is_complete(ASSET)


@pytest.mark.parametrize("place", [".manifests", ".manifests/datasets"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_no_folder_of_manifests_is_named_and_set_aside(store, tmp_path, capsys, place, kind):
    path = store.path(place)
    path.rename(tmp_path / "elsewhere")
    path.write_text("x") if kind == "file" else path.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "no"))
    sentence = f"{path} is not a folder; `tokenuq verify --forget` moves it to the trash"
    assert sentence in other_damage(store) and damage_of_table(store.home, "examples") is not None
    assert cli.main(["verify"]) == 1 and cli.main(["verify", "--forget"]) == 1
    assert capsys.readouterr().out.count(sentence) == 2
    assert other_damage(store) == [] and not os.path.lexists(path) and (tmp_path / "elsewhere").exists()
    publish(store, ASSET, {"examples": examples()}, dataset="toy")
    assert store.problems(ASSET) == [] and cli.main(["verify"]) == 0


@pytest.mark.parametrize("place", ["examples", "examples/dataset=toy"])
@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_what_is_in_the_way_of_a_table_is_set_aside(store, tmp_path, place, kind):
    path = store.path(place)
    path.rename(tmp_path / "elsewhere")
    path.write_text("x") if kind == "file" else path.symlink_to(tmp_path / ("elsewhere" if kind == "link" else "no"))
    assert cli.main(["verify", "--forget"]) == 1 and not os.path.lexists(path) and (tmp_path / "elsewhere").exists()
    publish(store, ASSET, {"examples": examples()}, dataset="toy")
    assert store.problems(ASSET) == []


def test_what_cannot_be_moved_is_one_sentence(store, monkeypatch, capsys):
    store.path(TABLE).unlink()

    def refuse(self, asset):
        raise PermissionError(13, "Permission denied", str(manifest(store)))

    monkeypatch.setattr(Store, "forget", refuse)
    assert cli.main(["verify", "--forget"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {ASSET}: cannot be repaired: [Errno 13] Permission denied")


def test_what_is_read_outside_of_stages_is_compared_first(store):
    require_undamaged(store, ASSET)
    require_undamaged(store, "datasets/never_made")
    store.path(TABLE).write_bytes(b"x")
    require_undamaged(store, ASSET, not_read=".parquet")
    with pytest.raises(InputError, match=f"^{ASSET}: .*{TABLE} has 1 bytes, not .*verify --forget"):
        require_undamaged(store, ASSET)
    manifest(store).write_text("{")
    with pytest.raises(InputError, match=f"^{manifest(store)}: is not JSON"):
        require_undamaged(store, ASSET)


def test_a_folder_of_manifests_that_cannot_be_read_is_named_and_left_alone(store, monkeypatch):
    folder, real = store.path(".manifests/datasets"), os.scandir

    def refuse(path):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (sentence,) = other_damage(store)
    assert sentence == f"{folder} cannot be read (Permission denied); let this user read it"
    assert sentence in damage_of_table(store.home, "examples") and cli.main(["verify", "--forget"]) == 1
    monkeypatch.undo()
    assert store.is_complete(ASSET)
