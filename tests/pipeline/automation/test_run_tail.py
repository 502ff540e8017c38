"""What a run reports is passed on once and in order, and what was passed on is not read again and again."""

from types import SimpleNamespace

import dagster as dg
import pytest

from tokenuq_pipeline.automation import run_tail
from tokenuq_pipeline.automation.run_tail import RunTail

MESSAGES = 40


class Heard:
    """A `RunLog` that keeps the messages."""

    def __init__(self):
        self.messages = []

    def see(self, event):
        pass

    def hear(self, level, message, step):
        self.messages.append(message)


class Counting:
    """An instance that counts the records that it decodes."""

    def __init__(self, instance):
        self._instance, self.decoded = instance, 0

    def get_records_for_run(self, *arguments, **options):
        page = self._instance.get_records_for_run(*arguments, **options)
        self.decoded += len(page.records)
        return page


@pytest.fixture
def clock(monkeypatch):
    """The time for `RunTail`, in seconds after the start."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(run_tail, "time", SimpleNamespace(time=lambda: now.seconds))
    return now


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def write(instance, second, message):
    entry = dg.EventLogEntry(
        error_info=None, level=20, user_message=message, run_id="run", timestamp=float(second), step_key="step"
    )
    instance.event_log_storage.store_event(entry)


@pytest.mark.parametrize("page", [3, 500])
def test_a_long_run_is_passed_on_once_and_in_order(instance, clock, monkeypatch, page):
    monkeypatch.setattr(run_tail, "PAGE", page)
    heard = Heard()
    tail = RunTail(instance, "run", heard)
    for second in range(MESSAGES):
        write(instance, second, f"message {second}")
        clock.seconds = second + 0.5
        tail.read()
        assert heard.messages[-1] == f"message {second}"
    assert heard.messages == [f"message {second}" for second in range(MESSAGES)]


def test_a_look_decodes_what_has_not_settled_and_nothing_before_it(instance, clock):
    counting = Counting(instance)
    tail = RunTail(counting, "run", Heard())
    for second in range(MESSAGES):
        write(instance, second, f"message {second}")
    clock.seconds = MESSAGES - 0.5
    tail.read()
    counting.decoded = 0
    tail.read()
    # Messages of the last ten seconds; the first look has counted the settled ones off.
    assert counting.decoded == run_tail.SETTLED_S


def test_a_record_that_appears_late_before_others_is_passed_on(clock):
    """Of two writers to PostgreSQL, the one with the lower number may commit last."""
    records = []

    def get_records_for_run(run_id, cursor, limit):
        found = sorted((r for r in records if r.storage_id > int(cursor or -1)), key=lambda r: r.storage_id)[:limit]
        last = str(found[-1].storage_id) if found else cursor
        return SimpleNamespace(records=found, cursor=last, has_more=len(found) == limit)

    def write(number, second):
        entry = SimpleNamespace(dagster_event=None, level=20, user_message=number, step_key=None)
        records.append(SimpleNamespace(storage_id=number, timestamp=second, event_log_entry=entry))

    heard = Heard()
    tail = RunTail(SimpleNamespace(get_records_for_run=get_records_for_run), "run", heard)
    for number, second in [(1, 0.0), (2, 1.0), (4, 15.0)]:
        write(number, second)
    clock.seconds = 16.0
    tail.read()
    write(3, 15.0)
    tail.read()
    assert heard.messages == [1, 2, 4, 3]
