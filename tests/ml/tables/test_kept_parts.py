"""Kept parts: a run that ends anywhere leaves what it has finished, and the next one measures only the rest."""

import itertools
import json
import shutil

import polars as pl
import pytest

from tokenuq_ml.tables import kept_parts
from tokenuq_ml.tables.kept_parts import Keeper, KeptFrames

pytestmark = pytest.mark.slow

UNITS = 7


class Ended(BaseException):
    """The run ends here: it is interrupted or killed."""


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A second passes with every look at the clock; a part is due after three."""
    ticks = itertools.count()
    monkeypatch.setattr(kept_parts.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(kept_parts, "SHORTEST_S", 3.0)


def unit(number: int) -> dict[str, pl.DataFrame]:
    """Of some units a table has no rows."""
    rows = {"id": [f"{number}-{row}" for row in range(number % 3)], "x": [float(number)] * (number % 3)}
    return {
        "rows": pl.DataFrame(rows, schema={"id": pl.String, "x": pl.Float64}),
        "count": pl.DataFrame({"number": [number]}),
    }


class Run:
    """A stage that measures units into two tables, and keeps them in two folders."""

    def __init__(self, folder):
        self.said, self.measured, self.tables = [], [], []
        self.kept = [KeptFrames(folder / name, lambda frames, n=name: self.tables.append((n, frames))) for name in "ab"]

    def measure(self, stops_at: int | None = None, error: BaseException | None = None) -> dict[str, pl.DataFrame]:
        with Keeper(self.kept, self.said.append, "toy") as keeper:
            self.first = keeper.resume()
            for number in range(self.first, UNITS):
                if number == stops_at:
                    raise error
                frames = unit(number)
                self.measured.append(number)
                self.tables += [("a", frames), ("b", {"count": frames["count"]})]
                keeper.put(frames, {"count": frames["count"]})
        return self.result

    @property
    def result(self) -> dict[str, pl.DataFrame]:
        names = {(table, name) for table, frames in self.tables for name in frames}
        return {
            f"{table}/{name}": pl.concat([frames[name] for of, frames in self.tables if of == table])
            for table, name in sorted(names)
        }


def equal(one: dict[str, pl.DataFrame], two: dict[str, pl.DataFrame]) -> bool:
    return one.keys() == two.keys() and all(one[name].equals(two[name]) for name in one)


@pytest.fixture
def whole(tmp_path):
    return Run(tmp_path / "whole").measure()


@pytest.mark.parametrize("stops_at", range(UNITS))
def test_an_interrupted_run_keeps_all_that_it_has_finished(stops_at, whole, tmp_path):
    first = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.measure(stops_at, KeyboardInterrupt())
    second = Run(tmp_path)
    assert equal(second.measure(), whole)
    assert second.measured == list(range(stops_at, UNITS))
    if stops_at:
        assert f"the first {stops_at} shards are kept, and the next run resumes after them" in first.said[-1]
        assert second.said == [f"toy: resuming after {stops_at} shards, which an earlier run has measured"]


@pytest.mark.parametrize("step", range(50))
def test_wherever_a_run_is_killed_the_next_one_has_the_tables_of_a_whole_one(step, whole, tmp_path, monkeypatch):
    """Killed before each change of the disk in turn: nothing runs after it, and open files stay half written."""
    changes = itertools.count()

    def dying(function):
        def call(*arguments, **options):
            if next(changes) >= step:
                raise Ended
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch, pytest.raises(Ended):
        patch.setattr(pl.DataFrame, "write_parquet", dying(pl.DataFrame.write_parquet))
        for name in ("make_folders", "replace_folder", "atomic_write"):
            patch.setattr(kept_parts, name, dying(getattr(kept_parts, name)))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        first = Run(tmp_path)
        first.measure()
        raise Ended
    second = Run(tmp_path)
    assert equal(second.measure(), whole)
    assert second.measured == list(range(second.first, UNITS))


def test_parts_of_two_assets_that_end_apart_resume_where_both_do(whole, tmp_path):
    first = Run(tmp_path)
    first.measure()
    ends = first.kept[0].ends()
    assert len(ends) > 1 and ends == first.kept[1].ends()
    shutil.rmtree(tmp_path / "b")
    again = Run(tmp_path)
    assert equal(again.measure(), whole) and again.first == 0
    # What is after the common end is forgotten, so that no part is listed twice.
    assert again.kept[0].ends() == again.kept[1].ends()


@pytest.mark.parametrize("damage", ["changed", "missing", "marker"])
def test_damaged_parts_are_said_and_measured_again(damage, whole, tmp_path):
    first = Run(tmp_path)
    first.measure()
    ends = first.kept[0].ends()
    (marker,) = (tmp_path / "a").glob("checkpoint-*/COMPLETE")
    damaged = tmp_path / "a" / list(json.loads(marker.read_bytes()))[2]
    if damage == "marker":
        marker.write_text("[")
    elif damage == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    second = Run(tmp_path)
    assert equal(second.measure(), whole)
    assert second.first == (0 if damage == "marker" else ends[0])
    assert any(str(marker if damage == "marker" else damaged.parent.name) in sentence for sentence in second.said)
    # It is whole again.
    assert Run(tmp_path).kept[0].ends()[-1] >= ends[-1]


def test_a_short_pass_keeps_nothing_and_a_large_one_does_not_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_parts, "SHORTEST_S", 1e6)
    Run(tmp_path / "short").measure()
    assert not (tmp_path / "short").exists()
    monkeypatch.setattr(kept_parts, "MOST_BYTES", 1)
    Run(tmp_path / "large").measure()
    assert len(list((tmp_path / "large/a/parts").iterdir())) == UNITS


def test_a_full_disk_while_an_interrupted_run_keeps_changes_no_message(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_parts, "replace_folder", full)
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.measure(2, KeyboardInterrupt())
    assert run.said == [] and not list(tmp_path.rglob("*.parquet"))


def test_parts_are_further_apart_the_longer_a_stage_works():
    day = 24 * 3600.0
    assert kept_parts.interval(0.0) == kept_parts.SHORTEST_S and kept_parts.interval(10 * day) == pytest.approx(864.0)
