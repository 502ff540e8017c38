"""`tokenuq prune`: what it lists, what it asks, and what it refuses."""

import contextlib
import json
import re
import sys
from types import SimpleNamespace

import pytest

from tests.support.paths import ROOT
from tests.support.plain_store import put, tree
from tests.support.toy_pipeline import toy_config
from tokenuq_pipeline import cli
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.commands import prune
from tokenuq_pipeline.commands import run as run_module
from tokenuq_pipeline.runtime.leases import Leases
from tokenuq_pipeline.runtime.pruner import pruner_of
from tokenuq_pipeline.runtime.pruning import removable, remove
from tokenuq_pipeline.runtime.store import Store
from tokenuq_pipeline.runtime.trash import Trash

pytestmark = pytest.mark.slow


def configured(config):
    return {name: asset.code_version for name, asset in assets_by_name(config).items()}


def files(store):
    return {path for path in tree(store.home) if not path.startswith((".trash", ".leases", ".owners"))}


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The toy study's store with an ablation, a study and a dataset more, which its configuration does not know."""
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setattr(prune, "configuration", toy_config)
    store = Store(tmp_path / "store")
    for asset in ("study/token_losses", "study/old/student", "gone/token_losses", "datasets/gone"):
        put(store, asset)
    return store


def run(capsys, *options):
    code = cli.main(["prune", *options])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.slow
def test_of_a_whole_study_only_what_is_not_configured_goes(made_study, tmp_path):
    store = made_study.copy(tmp_path / "toy").store
    assert removable(store, configured(toy_config())) == []
    before, without = files(store), configured(toy_config(ablations=["mle"]))
    found = removable(store, without)
    stages = {f"study/top/{stage}" for stage in ("student", "evaluation", "curriculum")}
    assert {item.name for item in found} == stages | {".checkpoints/study/top/student"}
    for item in found:
        remove(store, item)
    gone = before - files(store)
    assert gone and all("ablation=top" in path or "study/top" in path for path in gone)
    assert not [path for path in files(store) if "ablation=top" in path or "study/top/" in path]
    assert store.is_complete("study/mle/student") and removable(store, without) == []


def test_without_a_terminal_it_only_lists_with_paths_sizes_and_reasons(store, capsys):
    before = files(store)
    code, out = run(capsys)
    assert code == 0 and files(store) == before
    assert "study/old/student: the study study has no ablation old\n" in out
    assert re.search(r"\n +student/study=study/ablation=old/adapter  1 bytes\n", out)
    assert "gone/token_losses: the configuration has no study gone\n" in out
    assert "datasets/gone: the configuration has no dataset gone\n" in out
    assert f"the configuration was read from {ROOT / 'config'} (TOKENUQ_CONFIG is not set)\n" in out
    assert "nothing was deleted; give --yes" in out and "study/token_losses" not in out


def test_a_person_is_asked_and_only_yes_deletes(store, monkeypatch, capsys):
    before = files(store)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer in ("n", "", "yes please", "ja"):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert run(capsys)[0] == 0 and files(store) == before
    monkeypatch.setattr("builtins.input", lambda question: "y")
    code, out = run(capsys, "--study", "gone")
    assert code == 0 and "deleted 1 item; " in out and "`tokenuq prune --restore ASSET` brings" in out
    assert store.assets() == ["datasets/gone", "study/old/student", "study/token_losses"]


def test_what_was_deleted_is_listed_restored_and_emptied(store, capsys):
    before = files(store)
    assert run(capsys, "--yes")[0] == 0
    assert run(capsys) == (0, f"{store.home}: nothing to delete{prune._trash_note(pruner_of(store))}\n")
    code, out = run(capsys, "--restore", "study/old/")
    assert (code, out) == (0, "restored study/old/student\n") and store.is_complete("study/old/student")
    code, out = run(capsys, "--restore", "study/old/student")
    assert code == 2 and out.endswith(
        "holds no asset 'study/old/student', and none below it; there is datasets/gone, gone/token_losses\n"
    )
    assert run(capsys, "--restore", "gone")[0] == run(capsys, "--restore", "datasets/gone")[0] == 0
    assert files(store) == before
    run(capsys, "--yes", "--study", "gone")
    code, out = run(capsys, "--now")
    assert re.search(r"\.trash/\d{8}T[^ ]+: gone/token_losses, deleted on \d{4}-", out) and Trash(store.home).bytes > 0
    code, out = run(capsys, "--now", "--yes")
    assert code == 0 and "deleted 2 items for good, and 1 item of the trash" in out
    assert Trash(store.home).all() == [] and store.assets() == ["study/token_losses"]


@pytest.mark.parametrize("options", [(), ("--yes",), ("--study", "study"), ("--now", "--yes")])
def test_a_configuration_that_knows_no_study_of_the_store_is_refused_with_the_reason(
    store, monkeypatch, capsys, options
):
    """As with `TOKENUQ_CONFIG` unset."""
    before = tree(store.home)
    monkeypatch.undo()
    monkeypatch.setenv("TOKENUQ_HOME", str(store.home))
    monkeypatch.delenv("TOKENUQ_CONFIG", raising=False)
    code, out = run(capsys, *options)
    assert code == 2 and out.count("\n") == 1 and tree(store.home) == before
    assert f"{store.home}: the configuration knows no study of this store (gone, study)" in out
    assert f"it was read from {ROOT / 'config'} (TOKENUQ_CONFIG is not set): set TOKENUQ_CONFIG to the folder" in out


def test_an_asset_that_a_run_works_on_is_named_and_the_rest_goes(store, capsys):
    with Leases(store.home).hold("study/old/student", print):
        code, out = run(capsys, "--yes")
        assert code == 0 and "stays: study/old/student: a run works on it: process" in out
    assert store.assets() == ["study/old/student", "study/token_losses"]


def test_names_from_the_disk_cannot_control_the_terminal(store, capsys):
    (store.home / ".manifests" / "\x1b[31mred\n.json").write_text("{}")
    _, out = run(capsys)
    assert r"stays: \x1b[31mred\n: is not the name of an asset" in out and "\x1b" not in out


def test_a_run_empties_the_trash_also_if_it_makes_nothing(store, monkeypatch):
    entry = store.home / ".trash" / "20200101T000000.000000Z-01234567"
    entry.mkdir(parents=True)
    here = SimpleNamespace(store=store, defs=None, config=toy_config(), instance=None)
    monkeypatch.setenv("DAGSTER_HOME", str(store.home / "dagster"))
    monkeypatch.setattr(run_module, "configuration", toy_config)
    monkeypatch.setattr(run_module, "project", lambda study, config: contextlib.nullcontext(here))
    monkeypatch.setattr(run_module, "run_study", lambda *arguments: 0)
    assert cli.main(["run", "--study", "study"]) == 0 and not entry.exists()


def test_json_lists_and_deletes_and_never_asks(store, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: pytest.fail(question))
    gone = ["study/old/student", "gone/token_losses", "datasets/gone"]
    code, out = run(capsys, "--json")
    found = json.loads(out)
    assert code == 0 and {one["name"] for one in found["removable"]} >= set(gone) and found["deleted"] == []
    # With the manifest, which is no place of data.
    assert all(one["bytes"] > sum(one["places"].values()) > 0 and one["reason"] for one in found["removable"])
    assert all(store.read_manifest(name) for name in gone)
    code, out = run(capsys, "--json", "--yes")
    found = json.loads(out)
    assert code == 0 and set(found["deleted"]) >= set(gone) and found["not_deleted"] == {}
    assert not any(store.read_manifest(name) for name in gone)
    code, out = run(capsys, "--json", "--restore", "datasets/gone")
    assert code == 0 and json.loads(out)["restored"] == ["datasets/gone"] and store.read_manifest("datasets/gone")
