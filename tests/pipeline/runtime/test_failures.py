"""One failure is one error, last, with the number of assets that wait for it: on the console of the UI's runs."""

import io
import logging
import sqlite3

import dagster as dg
import pytest

from tokenuq_pipeline.runtime.console import CONSOLE, CONSOLE_CONFIG, compact_logger
from tokenuq_pipeline.runtime.failures import Failures, RunPlan

SENTENCE = "data.jsonl: row 3: holds no answer; add one"


def definitions(**broken):
    """A chain `a` -> `b`, `c`; `b`, `c` -> `d`, and `e` -> `f`. What is broken raises, asks for a retry or fails."""

    def asset(name, *deps):
        @dg.asset(name=name, deps=list(deps), check_specs=[dg.AssetCheckSpec("right", asset=name, blocking=True)])
        def compute(context):
            how = broken.get(name)
            if how == "failure":
                raise dg.Failure(SENTENCE, allow_retries=False)
            if how == "full":
                # As SQLAlchemy raises it where Dagster records what a step has done.
                raise RuntimeError("event") from sqlite3.OperationalError("database or disk is full")
            if how == "bug":
                raise ZeroDivisionError(SENTENCE)
            if how == "crash":
                raise dg.RetryRequested(max_retries=1, seconds_to_wait=0) from dg.Failure(SENTENCE)
            return dg.MaterializeResult(
                check_results=[dg.AssetCheckResult(passed=how != "check", check_name="right", description=SENTENCE)]
            )

        return compute

    assets = [asset("a"), asset("b", "a"), asset("c", "a"), asset("d", "b", "c"), asset("e"), asset("f", "e")]
    return dg.Definitions(
        assets,
        jobs=[dg.define_asset_job("job", config=CONSOLE_CONFIG)],
        loggers={"console": compact_logger},
        executor=dg.in_process_executor,
    )


def run(selection=None, **broken):
    """Run the job; the text of the console, and the errors."""
    job = definitions(**broken).resolve_job_def("job")
    keys = [dg.AssetKey(name) for name in selection] if selection else None
    before, CONSOLE.stream = CONSOLE.stream, io.StringIO()
    try:
        with dg.DagsterInstance.ephemeral() as instance:
            result = job.execute_in_process(instance=instance, raise_on_error=False, asset_selection=keys)
        text = CONSOLE.stream.getvalue()
    finally:
        CONSOLE.stream = before
    failures = Failures(RunPlan.of_job(job.get_subset(asset_selection=set(keys)) if keys else job))
    for event in result.all_events:
        failures.see(event)
    return text, failures.errors()


@pytest.mark.parametrize(
    "broken, expected",
    [
        ({"a": "failure"}, [f"failed: {SENTENCE}\nin a; 3 assets wait for it"]),
        ({"b": "failure"}, [f"failed: {SENTENCE}\nin b; 1 asset waits for it"]),
        ({"f": "failure"}, [f"failed: {SENTENCE}\nin f; no other asset waits for it"]),
        ({"a": "check"}, [f"check failed: a: right: {SENTENCE}\nin a; 3 assets wait for it"]),
        (
            {"a": "failure", "e": "check"},
            [
                f"failed: {SENTENCE}\nin a; 3 assets wait for it",
                f"check failed: e: right: {SENTENCE}\nin e; 1 asset waits for it",
            ],
        ),
        ({"b": "crash"}, [f"failed: {SENTENCE}\nin b; 1 asset waits for it"]),
        ({}, []),
    ],
)
def test_each_failure_is_printed_once_at_the_end_with_the_assets_that_wait(broken, expected):
    text, errors = run(**broken)
    assert sorted(error.replace(" (traceback: `make ui`, run )", "") for error in errors) == sorted(expected)
    assert "Dependencies for step" not in text and "Not executing" not in text and "Traceback" not in text
    assert text.count(SENTENCE) == len(expected)
    lines = [line[10:] for line in text.splitlines()]
    ends = [line for error in errors for line in error.splitlines()]
    assert not ends or lines[-len(ends) :] == ends


def test_records_on_a_full_disk_are_a_failure_in_words():
    text, (error,) = run(a="full")
    assert error.startswith("failed: the disk at ") and error.endswith("\nin a; 3 assets wait for it")
    assert "make space and run the same command again" in text and "traceback" not in text.lower()
    assert "database or disk" not in text


def test_only_assets_of_the_run_wait():
    _, errors = run(["a", "b"], a="failure")
    assert errors == [f"failed: {SENTENCE}\nin a; 1 asset waits for it"]


def test_a_bug_names_the_exception_and_where_its_traceback_is():
    text, (error,) = run(a="bug")
    assert error.startswith(f"failed: ZeroDivisionError: {SENTENCE} (traceback: `make ui`, run ")
    assert text.count("ZeroDivisionError") == 1


def test_a_step_in_a_process_of_its_own_prints_its_failure_at_once(monkeypatch):
    """Its logger sees neither the start nor the end of the run."""
    monkeypatch.setattr(CONSOLE, "stream", io.StringIO())
    job = definitions(a="failure").resolve_job_def("job")
    context = dg.build_init_logger_context(job_def=job)
    (handler,) = compact_logger.logger_fn(context).handlers
    with dg.DagsterInstance.ephemeral() as instance:
        events = job.execute_in_process(instance=instance, raise_on_error=False).all_events
    CONSOLE.stream.truncate(0)
    for event in events:
        if event.event_type != dg.DagsterEventType.RUN_START and event.step_key in (None, "a"):
            handler.emit(logging.makeLogRecord({"dagster_meta": {"dagster_event": event, "step_key": event.step_key}}))
            if event.is_failure:
                break
    assert CONSOLE.stream.getvalue().count(SENTENCE) == 1
    assert CONSOLE.stream.getvalue().endswith("in a; 3 assets wait for it\n")


def test_what_a_step_would_have_made_after_the_failure_waits_too():
    first, second, third, after = (dg.AssetKey(name) for name in ("first", "second", "third", "after"))

    @dg.multi_asset(specs=[dg.AssetSpec(key) for key in (first, second, third)])
    def step():
        yield dg.MaterializeResult(asset_key=first)
        raise dg.Failure(SENTENCE, allow_retries=False)

    failures = Failures(RunPlan({"step": [first, second, third], "other": [after]}, {after: [second]}))
    for event in dg.materialize([step], raise_on_error=False).all_events:
        failures.see(event)
    assert failures.errors() == [f"failed: {SENTENCE}\nin second; 2 assets wait for it"]


def test_control_characters_in_an_error_are_escaped(monkeypatch):
    monkeypatch.setattr(CONSOLE, "stream", io.StringIO())
    CONSOLE.line("failed: \x1b]0;title\x07 row\nin a")
    first, second = CONSOLE.stream.getvalue().splitlines()
    assert first.endswith(r"failed: \x1b]0;title\x07 row") and second.endswith("  in a")
