"""Follow a run whose steps have processes of their own: what they report is in Dagster's event log, in order.

The executor yields the steps' events, and not their messages, which go to the event log only. Dagster's own watcher
(`watch_event_logs`) relies on notifications of the file system, which network file systems do not send.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence

import dagster as dg

from tokenuq_ml.background import looking
from tokenuq_pipeline.automation.run_log import RunLog

POLL_S = 0.25
PAGE = 500
SETTLED_S = 10.0
"""Of several writers to one database, a record may appear after others with a higher number. It is looked for within
this time."""


class RunTail:
    """Passes what is new in the log of a run on to its console."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str, log: RunLog):
        self._instance, self._run_id, self._log = instance, run_id, log
        self._cursor: str | None = None
        self._seen: set[int] = set()

    def read(self) -> None:
        """Pass on what is new."""
        cursor, settled = self._cursor, True
        while True:
            page = self._instance.get_records_for_run(self._run_id, cursor, limit=PAGE)
            for record in page.records:
                if record.storage_id not in self._seen:
                    self._seen.add(record.storage_id)
                    self._pass_on(record.event_log_entry)
            if settled:
                settled = self._move(cursor, page.records, page.cursor)
            if not page.has_more:
                return
            cursor = page.cursor

    def _move(self, start: str | None, records: Sequence[dg.EventLogRecord], end: str) -> bool:
        """Let the next read begin after the settled records that a page begins with. Return whether all are settled.

        While a run works, its newest records are never settled. Those before them must not be decoded at each look.
        """
        now = time.time()
        first = sum(1 for _ in itertools.takewhile(lambda record: now - record.timestamp > SETTLED_S, records))
        if 0 < first < len(records):
            self._cursor = self._instance.get_records_for_run(self._run_id, start, limit=first).cursor
        elif first:
            self._cursor = end
        return first == len(records)

    def _pass_on(self, entry: dg.EventLogEntry) -> None:
        if entry.dagster_event is not None:
            self._log.see(entry.dagster_event)
        else:
            self._log.hear(int(entry.level), entry.user_message, entry.step_key)


@contextlib.contextmanager
def followed(instance: dg.DagsterInstance, run_id: str, log: RunLog) -> Iterator[None]:
    """Print what a run reports, from a thread, until the block ends; then the rest of it."""
    tail = RunTail(instance, run_id, log)

    def look() -> bool:
        # The database may be locked or away: the next look reads what this one has missed.
        with contextlib.suppress(Exception):
            tail.read()
        return False

    with looking(look, POLL_S, "run-tail"):
        yield
    tail.read()
