"""Batches on several threads give the same results in the same order, and leave no setting behind."""

import threading

import pytest
import torch

from tests.support.tiny_models import FLOAT32, examples, tiny_model, tiny_peft
from tokenuq_ml.config import UncertaintySpec
from tokenuq_ml.data.batching import length_batches
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.scoring.batch_threads import batch_tokens, map_batches
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import score_examples


def numerics(threads):
    return Numerics("cpu", torch.float32, threads, "test")


def test_results_keep_the_order_of_the_batches():
    first_may_end = threading.Event()

    def function(batch):
        if batch is batches[0]:
            assert first_may_end.wait(10), "the second batch waits for the first: they do not run at the same time"
        first_may_end.set()
        return batch.examples[0].example_id, torch.get_num_threads()

    batches, before = list(length_batches(examples(9), 1)), torch.get_num_threads()
    found = list(map_batches(function, batches, tiny_model(), numerics(2)))
    assert found == [(batch.examples[0].example_id, 1) for batch in batches]
    assert torch.get_num_threads() == before


def test_losses_and_bald_do_not_depend_on_the_number_of_threads():
    rows, keys = examples(12), ["example_id", "position"]
    spec = UncertaintySpec(samples=3, dropout=0.2)
    one, three = numerics(1), numerics(3)
    for measure in (
        lambda n: score_examples(tiny_model(), rows, n, max_tokens=40),
        lambda n: token_uncertainty(tiny_peft(), rows, spec, n, max_tokens=40),
    ):
        serial, parallel = measure(one).sort(keys), measure(three).sort(keys)
        for column in serial.columns:
            if serial[column].dtype.is_float():
                assert (serial[column] - parallel[column]).abs().max() < 1e-5, column
            else:
                assert serial[column].equals(parallel[column]), column


def test_an_error_in_one_batch_is_raised_and_stops_the_others():
    seen = []

    def function(batch):
        seen.append(batch)
        raise ValueError("row 7")

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="row 7"):
        list(map_batches(function, length_batches(examples(40), 1), tiny_model(), numerics(2)))
    assert len(seen) < 40 and torch.get_num_threads() == before


def test_a_model_that_changes_in_its_forward_pass_runs_one_batch_at_a_time():
    """One batch sets the rotary frequencies for its length, and another one would use them."""
    model, threads = tiny_model(), set()
    model.model.rotary_emb.rope_type = "dynamic"

    def function(batch):
        threads.add(threading.current_thread())

    list(map_batches(function, length_batches(examples(9), 1), model, numerics(4)))
    assert threads == {threading.main_thread()}


def test_batches_are_larger_on_an_accelerator_than_on_a_core():
    assert batch_tokens(FLOAT32) < batch_tokens(Numerics("cuda", torch.bfloat16, 4, "test"))
