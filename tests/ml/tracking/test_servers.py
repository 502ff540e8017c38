"""Trackers with servers or databases of their own: an MLflow server, W&B's offline files, Trackio's database."""

import json
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.tracked import TAGS, no_tracker_variables, request_for, resumed_and_evaluated, tracked_training
from tokenuq_ml.tracking.callback import TrackingCallback

pytestmark = pytest.mark.heavy
START_S = 180


@pytest.fixture
def server(tmp_path):
    """Start MLflow's server; yield its address and the function that kills it."""
    pytest.importorskip("mlflow", reason="needs mlflow, which make .venv/.dev installs")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--serve-artifacts"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)

    def kill():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield address, kill
    finally:
        kill()


def test_a_server_that_dies_in_between_is_noticed_and_its_run_is_linked(server, tmp_path, monkeypatch):
    address, kill = server
    on_log, rows = TrackingCallback.on_log, []

    def die(self, args, state, control, **kwargs):
        if state.global_step == 4:
            # The rows before have arrived.
            time.sleep(5)
            import mlflow

            client = mlflow.MlflowClient(address)
            (experiment,) = [one for one in client.search_experiments() if one.name == "s"]
            (run,) = client.search_runs([experiment.experiment_id])
            rows.extend(value.step for value in client.get_metric_history(run.info.run_id, "loss"))
            rows.append(f"{address}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}")
            kill()
        on_log(self, args, state, control, **kwargs)

    warnings = []
    with no_tracker_variables(monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        monkeypatch.setattr(TrackingCallback, "on_log", die)
        tracking, recorder, _ = tracked_training(request_for(tmp_path, "mlflow"), tmp_path / "work", warnings)
    assert len(recorder.log_rows) == 6 and rows == [1, 2, 3, tracking.figures["mlflow_run"]]
    assert len(warnings) == 1 and "mlflow_failure" in tracking.figures


def wandb_records(file: Path):
    """Yield the records of W&B's file: LevelDB's log format, with a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        # Complete, or the last part.
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def test_wandb_has_one_run_in_its_offline_files(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs wandb, which make .venv/.dev installs")
    with no_tracker_variables(monkeypatch):
        monkeypatch.setenv("WANDB_MODE", "offline")
        tracking, warnings = resumed_and_evaluated("wandb", tmp_path)
    assert warnings == [] and Path(tracking.figures["wandb_run"]).is_dir()
    files = sorted((tmp_path / "tracking" / "wandb").glob("offline-run-*/*.wandb"))
    # Of the killed process, of the one that resumed, and of the evaluation: `wandb sync` makes one run of them.
    assert len(files) == 3 and {file.name for file in files} == {f"run-{tracking.run.id}.wandb"}
    steps, figures, configured = [], {}, ""
    for file in files:
        for record in wandb_records(file):
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            figures |= row
            if "train/loss" in row:
                steps.append(int(float(row["train/global_step"])))
            configured += "".join(item.value_json for item in record.run.config.update if item.key == "tokenuq")
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6] and figures["eval/sums_loss"] == "1.5"
    assert TAGS["code_version"] in configured


def test_trackio_has_one_run_in_its_database(tmp_path):
    pytest.importorskip("trackio", reason="needs trackio, which make .venv/.dev installs")
    # Its library reads the variable when it is imported.
    program = (
        "import json, sys; from pathlib import Path; from tests.support.tracked import resumed_and_evaluated;"
        "tracking, warnings = resumed_and_evaluated('trackio', Path(sys.argv[1]));"
        "print(json.dumps([warnings, tracking.run.id, tracking.figures]))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "db"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    warnings, own, figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert warnings == [] and figures["trackio_run"].endswith("trackio show --project s")
    with sqlite3.connect(tmp_path / "db" / "s.db") as database:
        stored = database.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
        (configured,) = database.execute("SELECT config FROM configs").fetchone()
    assert {name for name, _ in stored} == {f"paper/student-{own}"}
    rows = [json.loads(metrics) for _, metrics in stored]
    assert {row["train/global_step"] for row in rows if "train/loss" in row} == {1, 2, 3, 4, 5, 6}
    assert [row["eval/sums_loss"] for row in rows if "eval/sums_loss" in row] == [1.5]
    assert json.loads(configured)["tokenuq.code_version"] == TAGS["code_version"]
