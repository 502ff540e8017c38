"""`dagster.yaml` and the database that keeps Dagster's records."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import dagster as dg
import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.postgres import PASSWORD, postgres
from tests.support.processes import free_port
from tests.support.toy_pipeline import STUDY, Toy, config_with
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.run import run_study
from tokenuq_pipeline.runtime.dagster_settings import (
    POSTGRES,
    POSTGRES_VARIABLE,
    SETTINGS,
    SQLITE,
    create_records,
    records_failure,
    require_postgres,
    write_settings,
)
from tokenuq_pipeline.runtime.paths import dagster_home

ADDRESS = {POSTGRES_VARIABLE: "postgresql://user:sesame-open@host/database"}


def settings(home):
    return (home / "dagster.yaml").read_text()


@pytest.mark.parametrize(
    "found, cause",
    [
        (None, "a first start"),
        ("", "a disk that was full, before files were written atomically"),
        (" \n", "the same"),
        (SETTINGS[:140], "a write that was cut in the middle of a line"),
    ],
)
def test_missing_empty_and_cut_settings_are_written(tmp_path, found, cause):
    if found is not None:
        (tmp_path / "dagster.yaml").write_text(found)
    write_settings(tmp_path, {})
    assert settings(tmp_path) == SETTINGS and [file.name for file in tmp_path.iterdir()] == ["dagster.yaml"], cause


@pytest.mark.parametrize(
    "mine", ["telemetry: {enabled: true}\n", "# nothing\n", SETTINGS[: SETTINGS.index("\n# Ends")]]
)
def test_a_users_edits_are_kept(tmp_path, mine):
    (tmp_path / "dagster.yaml").write_text(mine)
    write_settings(tmp_path, {})
    assert settings(tmp_path) == mine
    write_settings(tmp_path, ADDRESS)
    assert settings(tmp_path).startswith(mine.rstrip()) and settings(tmp_path).endswith(POSTGRES)


def test_a_link_to_settings_elsewhere_stays_a_link(tmp_path):
    (tmp_path / "shared.yaml").write_text("nux: {enabled: true}\n")
    (tmp_path / "dagster.yaml").symlink_to("shared.yaml")
    write_settings(tmp_path, ADDRESS)
    assert (tmp_path / "dagster.yaml").is_symlink() and settings(tmp_path).endswith(POSTGRES)


def test_the_database_is_referred_to_by_the_variable_and_no_password_is_written(tmp_path):
    for _ in range(2):
        write_settings(tmp_path, ADDRESS)
    assert settings(tmp_path) == SETTINGS + POSTGRES and "sesame" not in settings(tmp_path)
    assert yaml.safe_load(settings(tmp_path))["storage"] == {"postgres": {"postgres_url": {"env": POSTGRES_VARIABLE}}}


def test_settings_that_contradict_the_variable_are_refused_in_words(tmp_path):
    mine = "run_storage: {module: mine, class: Storage, config: {}}\n"
    (tmp_path / "dagster.yaml").write_text(mine)
    write_settings(tmp_path, {})
    with pytest.raises(InputError, match="dagster.yaml: `run_storage:` says .* delete `run_storage:` .* or unset"):
        write_settings(tmp_path, ADDRESS)
    assert settings(tmp_path) == mine
    (tmp_path / "dagster.yaml").write_text(SETTINGS + POSTGRES)
    with pytest.raises(InputError, match=f"in the database that {POSTGRES_VARIABLE} names, and it is not set; set it"):
        write_settings(tmp_path, {})


@pytest.mark.parametrize(
    "content, message",
    [
        (b"a: [1\n", "is not YAML in line 2; correct it, or delete it"),
        (b"- a\n", "must hold `key: value` lines"),
        (b"\xff\xfe", "cannot be read: it is not UTF-8"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    (tmp_path / "dagster.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        write_settings(tmp_path, {})
    assert (tmp_path / "dagster.yaml").read_bytes() == content


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "dagster.yaml").mkdir()
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        write_settings(tmp_path, {})


@pytest.mark.parametrize(
    "url", ["mysql://user@host/db", "postgresql://user:sesame@host", "host/db", "postgresql://user:sesame@[/x"]
)
def test_an_address_of_something_else_is_refused_without_its_password(url):
    with pytest.raises(InputError, match="is not the address of a database, such as postgresql://user@host/") as caught:
        require_postgres({POSTGRES_VARIABLE: url})
    assert "sesame" not in str(caught.value)


def test_a_server_that_is_down_gives_one_sentence():
    port = free_port()
    with pytest.raises(InputError) as caught:
        require_postgres({POSTGRES_VARIABLE: f"postgresql://user:sesame-open@127.0.0.1:{port}/records"})
    text = str(caught.value)
    assert text.startswith(f"{POSTGRES_VARIABLE}: no connection to 127.0.0.1:{port}/records: ") and "\n" not in text
    assert text.endswith("; start the server, or correct the address") and "sesame" not in text


@pytest.mark.slow
def test_first_starts_at_once_create_the_records_once(tmp_path, monkeypatch):
    """Before: a version table with two rows, with which no instance opened again."""
    home = tmp_path / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(lambda _: dagster_home(), range(4))) == [home] * 4
    with dg.DagsterInstance.get() as instance:
        assert instance.get_runs() == []
    for file in SQLITE:
        with sqlite3.connect(home / file) as connection:
            assert len(connection.execute("SELECT * FROM alembic_version").fetchall()) == 1
    with sqlite3.connect(home / SQLITE[0]) as connection:
        connection.execute("INSERT INTO alembic_version VALUES ('x')")
    with pytest.raises(Exception) as caught:
        dg.DagsterInstance.get()
    sentence = records_failure(caught.value)
    assert sentence.startswith(f"Dagster's records in {home} are damaged (") and "is adopted there" in sentence


def test_other_errors_are_not_taken_for_those_of_a_database():
    assert records_failure(ValueError("no")) is None and records_failure(None) is None


@pytest.fixture
def server(monkeypatch):
    with postgres() as running:
        monkeypatch.setenv(POSTGRES_VARIABLE, running.url)
        monkeypatch.setenv("PGPASSWORD", PASSWORD)
        yield running


@pytest.mark.slow
def test_records_are_kept_in_a_real_server(server, tmp_path, monkeypatch):
    """Here and in the heavy test below: PostgreSQL must be installed, else they are skipped with a sentence."""
    toy, home = Toy(tmp_path), tmp_path / "dagster_home"
    home.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    write_settings(home, os.environ)
    require_postgres(os.environ)
    for _ in range(2):
        create_records(home, os.environ)
    with toy.instance() as instance:
        assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
        assert instance.get_runs() == [] and instance.all_asset_keys() == []
    assert PASSWORD not in settings(home)
    monkeypatch.setenv("PGPASSWORD", "wrong-password")
    with pytest.raises(InputError, match="password authentication failed .*; correct PGPASSWORD or ~/.pgpass"):
        require_postgres(os.environ)


@pytest.mark.heavy
def test_a_study_runs_and_is_adopted_with_its_records_in_a_server(server, tmp_path, made_study_with_file, capfd):
    toy, config = made_study_with_file.copy(tmp_path / "toy"), config_with(made_study_with_file.folder.parent)
    write_settings(toy.folder / "dagster_home", os.environ)
    require_postgres(os.environ)

    def run():
        with toy.instance() as instance:
            assert run_study(toy.defs(config), config, STUDY, [], instance, toy.store) == 0
            return len(instance.get_runs())

    assert run() == 0 and "17 assets of the store adopted into Dagster's records" in capfd.readouterr().out
    toy.store.forget(f"{STUDY}/top/student")
    assert run() == 1 and run() == 1
    assert "up to date: nothing to recompute" in capfd.readouterr().out
    server.stop()
    command = [sys.executable, "-m", "tokenuq_pipeline.cli", "adopt", "--study", "quickstart"]
    environment = {**os.environ, "DAGSTER_HOME": str(toy.folder / "dagster_home"), "TOKENUQ_HOME": str(toy.store.home)}
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {POSTGRES_VARIABLE}: no connection to ")
    assert len(ended.stderr.splitlines()) == 1
    server.start()
    assert run() == 1
