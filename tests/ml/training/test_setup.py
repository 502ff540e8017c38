"""What determines a training: the examples of a pass and of a process, the device of a process, and the budget."""

import pytest
from transformers import TrainingArguments

from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_peft
from tests.support.training import MLE, assert_same_adapter, kill_training, training_setup
from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.setup import micro_batch_size, on_one_device
from tokenuq_ml.training.trainer import train


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "expected"),
    [
        (8, None, 1, 8),
        (8, 2, 1, 2),
        (8, None, 4, 2),
        (8, 2, 4, 2),
        # A pass has at most the process's share,
        (8, 8, 4, 2),
        # and an equal part of it.
        (12, 4, 2, 3),
        (10, 5, 5, 2),
        (6, 6, 6, 1),
    ],
)
def test_a_pass_has_an_equal_part_of_the_share_of_its_process(batch, micro, ranks, expected):
    spec = TrainSpec(batch_size=batch, micro_batch_size=micro)
    assert micro_batch_size(spec, ranks) == expected
    assert batch % (expected * ranks) == 0


def test_an_optimiser_batch_that_cannot_be_shared_is_refused_with_the_numbers_that_can():
    with pytest.raises(InputError, match=r"batch_size 8 cannot be shared by 3 processes; .* to one of 1, 2, 4, 8, or"):
        micro_batch_size(TrainSpec(batch_size=8), 3)


def test_one_process_uses_one_of_the_gpus_that_it_sees(tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    assert on_one_device(arguments).n_gpu <= 1
    arguments._n_gpu = 4
    assert on_one_device(arguments).n_gpu == 1


@pytest.mark.slow
def test_equal_tokens_trains_as_many_tokens_as_a_training_on_all_and_resumes(tmp_path):
    """Of eleven examples in batches of four, so that the last batch of an epoch is short. Killed in the third epoch."""
    half = AblationSpec(name="half", select={"by": "loss", "quantile": 0.5}, budget="equal_tokens")
    setup = training_setup(half, epochs=2, save_steps=1)
    assert setup.steps == 2 * training_setup(MLE, epochs=2).steps == 12
    model = tiny_peft(dropout=0.2)
    found = train(model, setup, tmp_path / "a", RecordingReporter(), "x")
    log, selections = found.training_log(), found.selections()
    assert len(log) == 12 and log["epoch"][-1] == 4.0 and 8 * log["learning_rate"][-1] < log["learning_rate"].max()
    every_token = sum(len(example.positions) for example in setup.examples) * 2
    # A selection is rounded up in each step.
    assert every_token <= selections["selected"].sum() <= every_token + len(log) / 2
    kill_training(8, tiny_peft(dropout=0.2), setup, tmp_path / "b")
    resumed = tiny_peft(dropout=0.2)
    again = train(resumed, setup, tmp_path / "b", RecordingReporter(), "x")
    assert_same_adapter(resumed, model)
    assert again.training_log().equals(log) and again.selections().equals(selections)
