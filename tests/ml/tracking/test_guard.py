"""A tracker that fails, hangs or is slow neither fails nor stops a training, and is told of once."""

import threading
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from tests.support.tracked import request_for, tracking_of
from tokenuq_ml.tracking import guarded_run, guarded_thread
from tokenuq_ml.tracking.callback import mirror_figures, numbers
from tokenuq_ml.tracking.guarded_thread import GuardedThread
from tokenuq_ml.tracking.request import RUN


class FakeRun:
    """A tracker whose `open`, `log` or `close` fails or hangs, and that notes what it gets."""

    place, known_step = "fake", -1
    fails: dict[str, BaseException | threading.Event | threading.Barrier] = {}
    seen: list = []

    def __init__(self, identity):
        # A thread of an earlier test may still hang.
        self.identity, self.fails, self.seen = identity, self.fails, self.seen

    def _do(self, what, *seen):
        problem = self.fails.get(what)
        if isinstance(problem, threading.Event | threading.Barrier):
            problem.wait(10)
        elif problem is not None:
            raise problem
        self.seen.append((what, *seen))

    def open(self, args, state, model=None):
        self._do("open", self.identity.id, self.identity.continues)

    def log(self, args, state, values):
        self._do("log", state.global_step, values)

    def close(self, args, state, status):
        self._do("close", status)


@pytest.fixture
def fake(monkeypatch):
    """Return a tracker in place of MLflow, and limits of a fraction of a second."""
    monkeypatch.setattr(FakeRun, "fails", {})
    monkeypatch.setattr(FakeRun, "seen", [])
    monkeypatch.setitem(guarded_run.CLASSES, "mlflow", FakeRun)
    for limit in ("OPEN_S", "CALL_S", "CLOSE_S", "STOPPED_S"):
        monkeypatch.setattr(guarded_run, limit, 0.3)
    yield FakeRun
    for problem in FakeRun.fails.values():
        if isinstance(problem, threading.Event):
            problem.set()


def train_with(folder, steps=3, error=None):
    """Make the calls of a Trainer; return the callback and its warnings."""
    warnings = []
    tracking, state = tracking_of(request_for(folder, "mlflow"), folder / "work", warnings), TrainerState()
    tracking.recorder = SimpleNamespace(log_rows=[])
    try:
        with tracking:
            tracking.on_train_begin(SimpleNamespace(), state, None)
            for step in range(1, steps + 1):
                state.global_step = step
                tracking.recorder.log_rows.append({"step": step, "loss": float(step), "mle_loss": None})
                tracking.on_log(None, state, None, logs={"grad_norm": 1.0, "loss": 9.0, "epoch": step / 2})
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    return tracking, warnings


def test_every_row_arrives_with_the_step_that_it_had(fake, tmp_path):
    tracking, warnings = train_with(tmp_path)
    rows = [{"grad_norm": 1.0, "loss": float(step), "epoch": step / 2} for step in (1, 2, 3)]
    assert fake.seen == [
        ("open", tracking.run.id, False),
        *(("log", step, row) for step, row in enumerate(rows, 1)),
        ("close", "FINISHED"),
    ]
    assert warnings == [] and tracking.figures == {RUN: tracking.run.id, "mlflow_run": "fake"}
    assert tracking.run.step == 3 and tracking.run.name == "paper/student"


@pytest.mark.parametrize("where", ["open", "log", "close"])
@pytest.mark.parametrize("problem", ["error", "exit", "hang"])
def test_a_tracker_that_fails_or_hangs_is_told_of_once_and_left_alone(where, problem, fake, tmp_path):
    kinds = {"error": ValueError("no space\nmore"), "exit": SystemExit(1), "hang": threading.Event()}
    fake.fails[where] = kinds[problem]
    tracking, (warning,) = train_with(tmp_path)
    assert ("any more after step" in warning) == (where != "open")
    expected = {"error": "ValueError: no space", "exit": "SystemExit: 1", "hang": "did not answer for 0.3 s"}
    assert "mlflow is not reported to" in warning and expected[problem] in warning
    assert expected[problem] in tracking.figures["mlflow_failure"]
    assert [call for call, *_ in fake.seen] == {"open": [], "log": ["open"], "close": ["open", *["log"] * 3]}[where]


def test_a_password_is_hidden_where_a_long_error_is_cut(fake, tmp_path):
    fake.fails["open"] = ValueError(f"{'x' * 280} http://me:hunter2secret@127.0.0.1:9")
    tracking, (warning,) = train_with(tmp_path)
    assert "hunter2" not in warning and "hunter2" not in tracking.figures["mlflow_failure"]


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError("not finite"), "FAILED"), (None, "FINISHED")]
)
def test_a_run_ends_as_its_training_does(error, status, fake, tmp_path):
    train_with(tmp_path, error=error)
    assert fake.seen[-1] == ("close", status)


def test_a_resumed_training_continues_its_run_and_leaves_out_rows_that_the_tracker_has(fake, tmp_path, monkeypatch):
    first, _ = train_with(tmp_path, error=KeyboardInterrupt())
    fake.seen.clear()
    monkeypatch.setattr(fake, "known_step", 2)
    second, _ = train_with(tmp_path)
    assert fake.seen[0] == ("open", first.run.id, True)
    assert [step for call, step, *_ in fake.seen if call == "log"] == [3]


def test_the_id_of_a_run_is_in_checkpoints_too(fake, tmp_path):
    """On another machine, only checkpoints are there."""
    first, _ = train_with(tmp_path / "here")
    state = TrainerState(stateful_callbacks={"TrackingCallback": first.state()})
    there = tracking_of(request_for(tmp_path, "mlflow"), tmp_path / "there")
    there.on_train_begin(SimpleNamespace(), state, None)
    assert there.run.id == first.run.id and fake.seen[-1] == ("open", first.run.id, True)


def test_a_damaged_note_of_the_run_begins_another_one(fake, tmp_path):
    first, _ = train_with(tmp_path)
    (tmp_path / "work" / "tracking.json").write_text("[")
    second, warnings = train_with(tmp_path)
    assert second.run.id != first.run.id and warnings == []


def test_an_evaluation_of_a_model_without_a_run_gets_its_own(fake, tmp_path):
    found = mirror_figures(request_for(tmp_path, "mlflow"), "evaluation", {"loss": 1.0}, None, pytest.fail)
    assert fake.seen == [("open", found[RUN], False), ("log", 0, {"eval_loss": 1.0}), ("close", "FINISHED")]


def test_an_evaluation_does_not_fail_with_its_tracker(fake, tmp_path):
    fake.fails["open"], warnings = RuntimeError("down"), []
    found = mirror_figures(request_for(tmp_path, "mlflow"), "evaluation", {"loss": 1.0}, None, warnings.append)
    assert len(warnings) == 1 and "RuntimeError: down" in found["mlflow_failure"]


def test_only_finite_numbers_are_reported():
    given = {"a": 1, "b": 0.5, "c": True, "d": "text", "e": None, "f": float("nan"), "g": float("inf")}
    assert numbers(given) == {"a": 1, "b": 0.5}


def test_a_tracker_that_falls_behind_is_given_up_when_too_much_waits(monkeypatch):
    monkeypatch.setattr(guarded_thread, "WAITING", 2)
    release = threading.Event()
    thread = GuardedThread("slow", limit_s=0.2)
    accepted = [thread.call(lambda: release.wait(30)) is not None for _ in range(20)]
    release.set()
    # One that is made, and two that wait.
    assert accepted[0] and not any(accepted[3:]) and thread.failure is not None


def test_runs_end_at_once_and_not_one_after_the_other(fake, tmp_path, monkeypatch):
    """Together they have the seconds that a stopped training has."""
    trackers = ("mlflow", "wandb", "trackio", "tensorboard")
    for name in trackers:
        monkeypatch.setitem(guarded_run.CLASSES, name, fake)
    monkeypatch.setattr(guarded_run, "CLOSE_S", 30.0)
    # None gets past it before all have come.
    fake.fails["close"], warnings = threading.Barrier(len(trackers)), []
    with tracking_of(request_for(tmp_path, *trackers), tmp_path / "work", warnings) as tracking:
        tracking.on_train_begin(SimpleNamespace(), TrainerState(), None)
    assert warnings == [] and fake.seen.count(("close", "FINISHED")) == len(trackers)
