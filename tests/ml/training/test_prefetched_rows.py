"""Rows that a thread reads beforehand are those that are read when they are asked for."""

import threading

import pytest
import torch

from tokenuq_ml.training.prefetched_rows import PrefetchedRows

ROWS = {"hidden_ND": torch.arange(40.0).view(20, 2), "offset_N": torch.arange(20.0)}
SPANS = [(3, 2), (10, 4)]
EXPECTED = [3, 4, 10, 11, 12, 13]


class Noting:
    """Rows that note which thread reads them, and fail if they are told to."""

    def __init__(self, tensor, error=None):
        self.tensor, self.error, self.threads = tensor, error, []

    def __getitem__(self, rows):
        self.threads.append(threading.current_thread().name)
        if self.error:
            raise self.error
        return self.tensor[rows]


@pytest.mark.parametrize("in_background", [True, False])
@pytest.mark.parametrize("started", [True, False])
def test_rows_are_those_of_the_spans(in_background, started):
    noting = {name: Noting(tensor) for name, tensor in ROWS.items()}
    rows = PrefetchedRows(noting, "cpu", in_background)
    for _ in range(2):
        if started:
            rows.start("a", SPANS), rows.start("a", SPANS)
        taken = rows.take("a", SPANS)
        assert taken["offset_N"].tolist() == EXPECTED and torch.equal(taken["hidden_ND"], ROWS["hidden_ND"][EXPECTED])
    threads = noting["offset_N"].threads
    # Twice two spans: what is started twice is read once, and what was taken is forgotten.
    assert len(threads) == 4
    assert all(name.startswith("teacher_cache") == (in_background and started) for name in threads)


def test_by_default_a_cpu_reads_when_it_is_asked():
    noting = Noting(ROWS["offset_N"])
    rows = PrefetchedRows({"offset_N": noting}, "cpu")
    rows.start("a", SPANS)
    assert not noting.threads and rows.take("a", SPANS)["offset_N"].tolist() == EXPECTED


def test_what_the_thread_raises_is_raised_where_rows_are_taken():
    rows = PrefetchedRows({"offset_N": Noting(ROWS["offset_N"], OSError("the disk is gone"))}, "cpu", True)
    rows.start("a", SPANS)
    with pytest.raises(OSError, match="the disk is gone"):
        rows.take("a", SPANS)


def test_a_batch_without_examples_has_no_rows():
    assert PrefetchedRows(ROWS, "cpu").take("none", [])["hidden_ND"].shape == (0, 2)


def test_rows_that_nobody_takes_do_not_stay():
    rows = PrefetchedRows({"offset_N": Noting(ROWS["offset_N"])}, "cpu", True)
    for key in range(9):
        rows.start(key, SPANS)
    assert len(rows._started) == 2 and rows.take(0, SPANS)["offset_N"].tolist() == EXPECTED
