"""A scoring that was stopped goes on where it stopped, with the data versions of one that was not."""

from pathlib import Path

import pytest

from tests.support.reporter import RecordingReporter
from tests.support.scored_teacher import in_small_shards, request, write_teacher
from tokenuq_ml.disk_space import Space
from tokenuq_ml.reports import token_plots
from tokenuq_ml.scoring import mc_dropout, token_losses
from tokenuq_ml.stages import losses_and_states, score_teacher
from tokenuq_ml.stages.reporters import with_numerics


class Passes:
    """Counts forward passes over batches, and interrupts the stage before the one of that number."""

    def __init__(self, monkeypatch):
        self.made, self.stop = 0, None
        for module, name in ((token_losses, "score_batch"), (mc_dropout, "sample_hidden_states")):
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, function):
        def call(*arguments, **options):
            if self.made == self.stop:
                raise KeyboardInterrupt
            self.made += 1
            return function(*arguments, **options)

        return call

    def of(self, asked, stop=None) -> tuple[int, dict[str, str], list[str]]:
        """Run the stage; return the passes, the data versions of its assets, and its lines."""
        self.made, self.stop, reporter = 0, stop, RecordingReporter()
        try:
            score_teacher.run(asked, reporter)
        except KeyboardInterrupt:
            assert stop is not None
        versions = {result.stage: with_numerics(result).data_version for result in reporter.results}
        return self.made, versions, reporter.lines


def without_plots(setting) -> None:
    for module, name in (
        (token_plots, "losses_by_category"),
        (token_plots, "uncertainty_spread"),
        (score_teacher, "metric_intervals"),
    ):
        setting(module, name, lambda *arguments, **options: None)


@pytest.fixture
def passes(monkeypatch):
    in_small_shards(monkeypatch.setattr)
    without_plots(monkeypatch.setattr)
    return Passes(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A teacher, and the passes and data versions of a scoring that is not stopped."""
    folder = tmp_path_factory.mktemp("teacher")
    write_teacher(folder)
    with pytest.MonkeyPatch.context() as patch:
        in_small_shards(patch.setattr)
        without_plots(patch.setattr)
        made, versions, _ = Passes(patch).of(request(folder, "whole"))
    assert len(versions) == 4 and not left_of(folder)
    return folder, made, versions


@pytest.fixture
def folder(whole, tmp_path):
    for name in ("model", "adapter", "tokenized_dataset"):
        (tmp_path / name).symlink_to(whole[0] / name)
    return tmp_path


def left_of(folder: Path) -> list[Path]:
    return [path for path in (folder / "work").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_scoring_that_is_stopped_again_and_again_measures_each_shard_once(folder, passes, whole):
    """Losses and states, both evaluations, BALD: each is stopped in its midst."""
    made, found, stops, said = 0, {}, 0, 0
    left = list(whole[2])
    while left:
        # The store has taken what was reported. The output of the rest is gone with its run.
        count, some, lines = passes.of(request(folder, f"run{stops}", *left), stop=11)
        made, found = made + count, found | some
        left = [stage for stage in left if stage not in found]
        if left:
            stops += 1
            said += any("are kept, and the next run resumes after them" in line for line in lines)
    assert found == whole[2] and stops >= said >= 3
    # At most a shard is lost: two batches under the teacher, and the first one under the base model.
    assert whole[1] <= made <= whole[1] + 3 * stops
    assert not left_of(folder)


@pytest.mark.heavy
def test_assets_are_resumed_apart(folder, passes, whole):
    """Of a run that makes both, the states alone are asked for: no shard that is kept is scored again."""
    passes.of(request(folder, "both", "token_losses", "teacher_hidden"), stop=12)
    alone, found, lines = passes.of(request(folder, "alone", "teacher_hidden"))
    assert any("resuming after" in line for line in lines)
    assert found == {"teacher_hidden": whole[2]["teacher_hidden"]}
    # Those of the states are forgotten; those of the losses are still there.
    assert {path.relative_to(folder / "work").parts[0].partition("-")[0] for path in left_of(folder)} == {
        "token_losses"
    }
    rest, found, _ = passes.of(request(folder, "rest", "token_losses"))
    assert found == {"token_losses": whole[2]["token_losses"]}
    assert rest == 2 * alone > 0


@pytest.mark.heavy
def test_other_settings_begin_at_the_first_shard(folder, passes, whole):
    passes.of(request(folder, "stopped", "token_uncertainty"), stop=5)
    changed = request(folder, "changed", "token_uncertainty")
    changed.assets["token_uncertainty"].fields["uncertainty"]["dropout"] = 0.3
    _, other, lines = passes.of(changed)
    assert other["token_uncertainty"] != whole[2]["token_uncertainty"] and not any("resuming" in line for line in lines)
    # What was kept for the earlier spec is gone as well.
    assert not left_of(folder)


@pytest.mark.heavy
@pytest.mark.parametrize("shard_batches", [1, 10**6], ids=["small shards", "one shard"])
def test_a_stopped_bald_loses_no_batch(shard_batches, folder, passes, whole, monkeypatch):
    monkeypatch.setattr(losses_and_states, "SHARD_BATCHES", shard_batches)
    every, versions, _ = passes.of(request(folder, "every", "token_uncertainty"))
    assert every > 6 and (versions["token_uncertainty"] == whole[2]["token_uncertainty"]) == (shard_batches == 1)
    made, found, runs = 0, {}, 0
    while not found:
        count, found, _ = passes.of(request(folder, f"run{runs}", "token_uncertainty"), stop=3)
        made, runs = made + count, runs + 1
    assert found == versions and made == every and runs > 2


@pytest.mark.heavy
def test_states_that_do_not_fit_twice_are_not_kept(folder, passes, monkeypatch):
    disk = Space(folder, folder, 10**9, 10_000, None)
    monkeypatch.setattr(losses_and_states, "space", lambda path: disk)
    _, versions, lines = passes.of(request(folder, "whole", "token_losses", "teacher_hidden"))
    assert len(versions) == 2
    (line,) = [line for line in lines if "keeps no finished shards" in line]
    assert "10.0 kB are free" in line
