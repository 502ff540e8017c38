"""The first draws of every recipe, as literal numbers: stored results depend on them, so they must never change."""

import random
import subprocess
import sys
from array import array

import pytest
import torch

from tokenuq_ml import seeding


def test_the_shuffle_of_a_dataset_is_pinned():
    order = array("I", range(8))
    seeding.shuffle_dataset("gsm8k", 3, order)
    assert list(order) == [4, 3, 2, 6, 0, 7, 1, 5]


def test_the_draws_of_a_synthetic_language_are_pinned():
    assert seeding.language_generator(3, "post train").random() == 0.3438031676933797


def test_the_order_of_an_epoch_is_pinned():
    assert torch.randperm(8, generator=seeding.epoch_generator(3, 2)).tolist() == [2, 3, 5, 7, 4, 0, 6, 1]


def test_the_global_torch_generator_is_pinned():
    with torch.random.fork_rng():
        seeding.seed_torch(3)
        assert torch.randint(1000, (4,)).tolist() == [986, 48, 737, 667]


def test_the_bits_of_training_dropout_are_pinned():
    assert seeding.part_bits(3, 1, 2).tolist() == [1480120911040968105, 6858678715897013419]


def test_the_draws_of_a_step_are_pinned():
    assert seeding.step_generator(3, 7).random(3).tolist() == [
        0.6822299076083322,
        0.6001378183643498,
        0.5137920249753317,
    ]


def test_the_draws_of_an_example_are_pinned():
    assert seeding.example_generator(3, "gsm8k/a").random(2).tolist() == [0.8323797532128376, 0.7034387764901153]
    assert seeding.example_generator(3, "gsm8k/b").random() == 0.9216059011941293


def test_the_bits_of_monte_carlo_dropout_are_pinned():
    key = seeding.example_key(3, "gsm8k/a")
    assert key.hex() == "e90b306df88b6281441d40b809c522a6"
    draws = seeding.philox_bits(key, (1, 2, 0), 2).view("<i2")[:6]
    assert draws.tolist() == [-12226, -2511, -7499, -7306, -22704, 17401]


def test_the_order_of_the_noise_floor_sample_is_pinned():
    assert seeding.example_rank("gsm8k/a")[:4].hex() == "4be88569"


def test_the_bootstrap_over_examples_is_pinned():
    assert seeding.bootstrap_generator(3).integers(100, size=5).tolist() == [81, 8, 17, 23, 18]
    assert seeding.bootstrap_generator(3).multinomial(6, [1 / 6] * 6).tolist() == [0, 0, 2, 1, 0, 3]


def test_the_bootstrap_over_seeds_is_pinned():
    draws = seeding.family_seed_generator(5, (None, 0, 7)).integers(3, size=8)
    assert draws.tolist() == [0, 2, 2, 0, 1, 1, 0, 2]


def test_the_choices_of_ifeval_checkers_are_pinned():
    state = random.getstate()
    try:
        seeding.seed_python("ifeval/7")
        assert [random.randrange(1000) for _ in range(4)] == [657, 740, 383, 352]
    finally:
        random.setstate(state)


def test_the_probe_of_fast_passes_is_pinned():
    assert torch.randint(1000, (4,), generator=seeding.probe_generator()).tolist() == [44, 239, 933, 760]


@pytest.mark.slow
def test_the_module_starts_without_torch():
    code = "import sys, tokenuq_ml.seeding; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
