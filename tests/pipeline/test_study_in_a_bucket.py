"""A study whose store is in a bucket: made by one machine, seen, queried and continued by another."""

import subprocess
import sys
import threading

import dagster as dg
import pytest

from tests.support.paths import ROOT
from tests.support.toy_pipeline import STUDY, FakeStagesInProcess, toy_config
from tokenuq_ml.object_store.bucket import StoreAway
from tokenuq_ml.tables import connect, scan
from tokenuq_pipeline import cli
from tokenuq_pipeline.build_defs import build_defs
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.bucket_store import copy_assets, open_store
from tokenuq_pipeline.runtime.dagster_internals import forget_definitions_storage

pytestmark = pytest.mark.heavy
CAPTURED = {"capture_output": True, "text": True, "cwd": ROOT}


def run(store, config) -> dict[str, str]:
    """Bring the study up to date with a new Dagster instance, and return the data version of every asset."""
    forget_definitions_storage()
    with dg.DagsterInstance.ephemeral() as instance:
        defs = build_defs(config, store.home, FakeStagesInProcess())
        assert run_study(defs, config, STUDY, [], instance, store) == 0
    return versions(store)


def versions(store) -> dict[str, str]:
    return {asset: store.data_version(asset) for asset in store.assets()}


def another_machine(address, monkeypatch, folder):
    monkeypatch.setenv("TOKENUQ_CACHE", str(folder))
    return open_store(address)


def test_another_machine_goes_on_where_the_first_ended(store_address, monkeypatch, tmp_path, made_study, capsys):
    config = toy_config()
    made = run(open_store(store_address), config)
    assert made == versions(made_study.store)

    store = another_machine(store_address, monkeypatch, tmp_path / "another machine")
    assert not list(store.home.rglob("*.parquet")) and all(store.is_complete(asset) for asset in made)
    capsys.readouterr()
    assert run(store, config) == made and "up to date: nothing to recompute" in capsys.readouterr().out
    # To report assets to Dagster, tables and pictures are shown; the teacher's states and the model are not.
    fetched = {path.relative_to(store.home).parts[0] for path in store.home.rglob("*") if path.is_file()}
    assert "token_losses" in fetched and not fetched & {"models", "teacher_hidden"}

    remade = run(store, toy_config(quantile=0.5))
    changed = {asset for asset in remade if remade[asset] != made[asset]}
    assert f"{STUDY}/top/student" in changed and f"{STUDY}/mle/student" not in changed


def test_readers_fetch_what_they_read(store_address, s3_proxy, monkeypatch, tmp_path, made_study, capsys):
    local = made_study.store
    first = open_store(store_address)
    assert copy_assets(local, first) == local.assets() and copy_assets(local, first) == []

    store = another_machine(store_address, monkeypatch, tmp_path / "one")
    rows = scan("selections", store_address, ablation="mle").collect()
    assert rows.equals(scan("selections", local.home, ablation="mle").collect())
    assert {path.parent.name for path in store.home.rglob("*.parquet")} == {"ablation=mle"}

    store = another_machine(store_address, monkeypatch, tmp_path / "two")
    count = "SELECT count(*) FROM tokens"
    with (
        connect(store_address, tables=["token_losses", "token_uncertainty"]) as connection,
        connect(local.home) as expected,
    ):
        assert connection.sql(count).fetchall() == expected.sql(count).fetchall() != [(0,)]
        with pytest.raises(Exception, match="table selections: .* was not downloaded from the bucket"):
            connection.sql("SELECT * FROM selections").fetchall()

    another_machine(store_address, monkeypatch, tmp_path / "three")
    monkeypatch.setenv("TOKENUQ_HOME", store_address)
    output = tmp_path / "counted.csv"
    of_one = f"SELECT count(*) AS n FROM selections WHERE study = '{STUDY}' AND ablation = 'top'"
    assert cli.main(["query", "--output", str(output), of_one]) == 0
    with connect(local.home) as expected:
        ((number,),) = expected.sql(of_one).fetchall()
    assert output.read_text().split() == ["n", str(number)] and number
    fetched = {path.parent.name for path in open_store(store_address).home.rglob("*.parquet")}
    assert fetched == {"ablation=top"}
    assert cli.main(["query", "--output", str(output), "SELECT count(*) AS n FROM selections"]) == 0
    with connect(local.home) as expected:
        ((number,),) = expected.sql("SELECT count(*) FROM selections").fetchall()
    assert output.read_text().split() == ["n", str(number)]
    assert cli.main(["verify"]) == 0
    store = open_store(store_address)
    file = next(file for file in store.read_manifest(f"{STUDY}/mle/student").files if "selections" in file.path)
    store.mirror.bucket.write(f"{file.path}/{file.sha256}", bytes(file.bytes))
    assert cli.main(["verify"]) == 1 and cli.main(["verify", "--forget"]) == 1
    assert store.incomplete_because(f"{STUDY}/mle/student") == "has no manifest"
    out = capsys.readouterr().out
    assert f"{file.path}: its SHA-256 begins with" in out
    described = subprocess.run([sys.executable, "-m", "tokenuq_pipeline.cli", "query", "--schema"], **CAPTURED)
    assert (described.returncode, described.stderr) == (0, "")
    assert "token_losses: cannot be read here." in described.stdout
    s3_proxy.is_away = True
    monkeypatch.setenv("TOKENUQ_STORE_TIMEOUT_SECONDS", "0.5")
    assert cli.main(["query", count]) == 2
    assert "does not answer as it should" in capsys.readouterr().err


def test_a_run_goes_on_when_the_service_is_back(store_address, s3_proxy, monkeypatch, made_study, capsys):
    """The service is away for longer than a request is repeated for, so steps are repeated too."""
    monkeypatch.setenv("TOKENUQ_STORE_TIMEOUT_SECONDS", "2")
    store = open_store(store_address)

    class Interrupted(FakeStagesInProcess):
        def run(self, context, request, staging, lease):
            if request.entrypoint == "score_teacher" and not s3_proxy.faults:
                s3_proxy.is_away = True
                s3_proxy.break_next("used", "NONE")
                threading.Timer(4.0, setattr, [s3_proxy, "is_away", False]).start()
            yield from super().run(context, request, staging, lease)

    forget_definitions_storage()
    with dg.DagsterInstance.ephemeral() as instance:
        config = toy_config()
        defs = build_defs(config, store.home, Interrupted())
        assert run_study(defs, config, STUDY, [], instance, store) == 0
    assert versions(store) == versions(made_study.store)


def test_a_run_without_a_service_is_one_sentence(store_address, s3_proxy, monkeypatch, capsys):
    class Cut(FakeStagesInProcess):
        def run(self, context, request, staging, lease):
            s3_proxy.is_away = request.entrypoint == "train_teacher"
            yield from super().run(context, request, staging, lease)

    monkeypatch.setenv("TOKENUQ_STORE_TIMEOUT_SECONDS", "0.5")
    store, config = open_store(store_address), toy_config()
    forget_definitions_storage()
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_study(build_defs(config, store.home, Cut()), config, STUDY, [], instance, store) == 1
    failed, where = capsys.readouterr().out.strip().splitlines()[-2:]
    assert failed.startswith(f"failed: {store_address}: http://127.0.0.1") and "traceback" not in failed
    assert where == f"in {STUDY}/baseline_teacher; 11 assets wait for it"
    with pytest.raises(StoreAway, match="run the same command again once it does: what is complete is kept$"):
        open_store(store_address)


def test_examples_are_curated(store_address, monkeypatch, tmp_path, made_study, capsys):
    copy_assets(made_study.store, open_store(store_address))
    monkeypatch.setattr("tokenuq_pipeline.commands.curate.configuration", toy_config)

    def curated(home, output):
        monkeypatch.setenv("TOKENUQ_HOME", str(home))
        assert cli.main(["curate", "--study", STUDY, "--top", "1", "--output", str(output)]) == 0
        return output.read_text(), capsys.readouterr().out.replace(str(output), "")

    expected = curated(made_study.store.home, tmp_path / "local.csv")
    store = another_machine(store_address, monkeypatch, tmp_path / "another machine")
    assert curated(store_address, tmp_path / "bucket.csv") == expected and expected[0].count("\n") > 1
    read = {path.relative_to(store.home).parts[0] for path in store.home.rglob("*.parquet")}
    assert read == {"token_losses", "token_uncertainty", "token_alternatives", "selections", "examples"}
    with pytest.raises(SystemExit):
        cli.main(["curate", "--study", STUDY, "--output", f"{store_address}/review.csv", "--top", "2"])
    assert cli.main(["curate", "--study", STUDY, "--output", str(store.home / "review.csv")]) == 2
