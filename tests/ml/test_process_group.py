"""The processes of a stage, seen by one: it needs no other. `stages/test_several_processes.py` has two."""

import pytest

from tokenuq_ml import process_group


def test_one_process_is_the_main_one_and_has_everything(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    process_group.start()
    assert (process_group.rank(), process_group.world_size(), process_group.is_main()) == (0, 1, True)
    process_group.barrier()
    assert process_group.gather_objects(["a"]) == ["a"] and process_group.on_main(lambda: 7) == 7
    assert list(process_group.merged(process_group.dealt("abc"))) == ["a", "b", "c"]
    assert process_group.any_rank(True) and not process_group.any_rank(False)


def test_a_library_under_torchrun_is_not_a_rank_of_a_stage(monkeypatch):
    """A user's ranks score texts of their own, and must not wait for each other."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (process_group.launched_rank(), process_group.launched_processes()) == (1, 4)
    assert (process_group.rank(), process_group.world_size()) == (0, 1)


@pytest.mark.parametrize(("rank", "own", "computed"), [(0, [0, 20], [0, 2]), (1, [10], [1, 2])])
def test_ranks_in_step_compute_equally_often(rank, own, computed, monkeypatch):
    """Of three items, the second rank has one: in the last round it computes the first one's, for nobody."""
    monkeypatch.setattr(process_group, "_group", process_group._Group(rank, 2))
    calls = []

    def function(item):
        calls.append(item)
        return 10 * item

    assert list(process_group.own_results(function, range(3), in_step=True)) == own and calls == computed
    calls.clear()
    assert list(process_group.own_results(function, range(3), in_step=False)) == own and len(calls) == len(own)
    assert list(process_group.own_results(function, [], in_step=True)) == []
