"""The port of the UI, the record of a UI under way, and what a killed one leaves."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.support.processes import wait_until
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.cli import main
from tokenuq_pipeline.runtime.owners import Owner
from tokenuq_pipeline.ui import record, sessions
from tokenuq_pipeline.ui.port import listen

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def test_a_port_in_use_is_one_sentence_with_the_holder():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError) as refused:
            listen("127.0.0.1", port)
        message = str(refused.value)
        assert f"port {port} is in use by process {os.getpid()} (" in message and "\n" not in message
        assert f"PORT={port + 1}" in message
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 3000), ("192.0.2.1", 3000)])
def test_an_address_that_is_not_of_this_machine_is_refused(host, port):
    with pytest.raises(InputError, match="cannot listen"):
        listen(host, port)


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--port", "70000"], {}, "0 to 65535"),
        (["--host", "0.0.0.0"], {}, "TOKENUQ_UI_TOKEN"),
        ([], {"TOKENUQ_UI_TOKEN": "short"}, "16"),
        ([], {"TOKENUQ_UI_HOSTS": "http://box"}, "TOKENUQ_UI_HOSTS"),
        (["-w", "/no/such/file"], {}, "no such workspace file"),
    ],
)
def test_wrong_settings_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, environment, words):
    for name, value in ({"DAGSTER_HOME": str(tmp_path)} | environment).items():
        monkeypatch.setenv(name, value)
    assert main(["ui", "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.json"))


@pytest.fixture
def leader():
    """A process that leads a session, and what is killed in the end."""
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_ui_under_way_is_found(tmp_path, leader):
    assert record.running(tmp_path) is None and record.end_orphans(tmp_path, print) == 0
    record.write(tmp_path, "http://127.0.0.1:3000", leader.pid)
    found = record.running(tmp_path)
    assert found.url == "http://127.0.0.1:3000" and found.supervisor == Owner.current()
    assert record.end_orphans(tmp_path, print) == 0 and leader.poll() is None
    record.remove(tmp_path)
    assert record.running(tmp_path) is None


def with_dead_supervisor(folder, leader):
    """The record of a UI whose supervisor was killed."""
    record.write(folder, "http://127.0.0.1:3000", leader.pid)
    content = json.loads((folder / record.FILE).read_text())
    pid, _, rest = content["supervisor"].partition("-")
    content["supervisor"] = f"{pid}-0{rest.partition('@')[0]}1@{rest.partition('@')[2]}"
    (folder / record.FILE).write_text(json.dumps(content))


def test_what_a_killed_ui_has_left_is_ended(tmp_path, leader, monkeypatch):
    monkeypatch.setattr(record, "ENDS_WITHIN_S", 0.1)
    with_dead_supervisor(tmp_path, leader)
    assert record.running(tmp_path) is None
    assert record.end_orphans(tmp_path, print) == 1
    # It handles SIGINT as every Python process does, which would print a traceback.
    assert leader.wait(10) == -signal.SIGTERM and not sessions.members(leader.pid)


@pytest.mark.parametrize("spared", [False, True], ids=["server", "run"])
def test_an_interrupt_prints_no_traceback_of_what_still_starts(spared):
    code = "import time; print(1, flush=True); time.sleep(60)"
    # In the command line of a run, whose stage has to be told.
    more = [sessions.RUN_WORKER.decode()] if spared else []
    process = subprocess.Popen(
        [*SLEEP[:1], "-c", code, *more], start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        process.stdout.readline()
        sessions.interrupt(process.pid)
        assert (b"Traceback" in process.stderr.read()) == spared
    assert process.returncode == (-signal.SIGINT if spared else -signal.SIGTERM)


def test_an_interrupt_reaches_what_handles_both_signals():
    code = (
        "import signal, time\nsignal.signal(15, signal.getsignal(2))\n"
        "try: print(1, flush=True), time.sleep(60)\nexcept KeyboardInterrupt: print('in order', flush=True)"
    )
    process = subprocess.Popen([*SLEEP[:1], "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    with process:
        process.stdout.readline()
        sessions.interrupt(process.pid)
        assert process.stdout.read() == b"in order\n"
    assert process.returncode == 0


def test_processes_that_ignore_the_interrupt_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "ENDS_WITHIN_S", 0.1)
    monkeypatch.setattr(sessions, "ORDERLY_S", 0.2)
    code = "import signal, time; signal.signal(2, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    stubborn = subprocess.Popen([*SLEEP[:2], "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    with stubborn:
        stubborn.stdout.readline()
        with_dead_supervisor(tmp_path, stubborn)
        assert record.end_orphans(tmp_path, print) == 1
        assert stubborn.wait(10) == -signal.SIGKILL


def test_a_reused_process_id_is_left_alone(tmp_path, leader):
    with_dead_supervisor(tmp_path, leader)
    content = json.loads((tmp_path / record.FILE).read_text())
    pid, _, rest = content["server"].partition("-")
    content["server"] = f"{pid}-1{rest}"
    (tmp_path / record.FILE).write_text(json.dumps(content))
    assert record.end_orphans(tmp_path, print) == 0 and leader.poll() is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"url": 1}', '{"url": "", "supervisor": 1, "server": 2}', "\x00"]
)
def test_a_damaged_record_says_nothing(tmp_path, text):
    (tmp_path / record.FILE).write_text(text)
    assert record.running(tmp_path) is None and record.end_orphans(tmp_path, print) == 0


def test_a_record_of_another_machine_says_nothing(tmp_path, leader):
    with_dead_supervisor(tmp_path, leader)
    text = (tmp_path / record.FILE).read_text()
    (tmp_path / record.FILE).write_text(text.replace(Owner.current().host, "elsewhere"))
    assert record.end_orphans(tmp_path, print) == 0 and leader.poll() is None


def test_the_members_of_a_session(leader):
    wait_until(lambda: sessions.members(leader.pid) == [leader.pid])
    assert not sessions.members(leader.pid, without=[leader.pid]) and not sessions.is_run_worker(leader.pid)
