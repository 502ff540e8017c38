"""What determines a training: the examples of a pass and of a process, and the device of a process."""

import pytest
from transformers import TrainingArguments

from tokenuq_ml.config import TrainSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.training.setup import micro_batch_size, on_one_device


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
