"""Random bits equal those of the published generator on every device."""

import numpy as np
import pytest
import torch

from tokenuq_ml.models.philox import DRAWS_PER_BLOCK, philox, philox_blocks, random_draws

KEYS = [bytes(range(16)), b"\xff" * 16, b"\x80" + bytes(15)]
STREAMS = [(0, 0, 0), (1, 2, 3), (2**63 + 5, 2**32 - 1, 2**64 - 1)]


@pytest.mark.parametrize(
    "word, expected",
    [
        (0, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (2**64 - 1, "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0"),
    ],
)
def test_the_published_answers_are_met(word, expected):
    """From Random123's kat_vectors, philox4x64 with 10 rounds: counter and key all zeros, and all ones."""
    words = torch.tensor([word - 2**64 if word >= 2**63 else word])
    got = [int(out) % 2**64 for out in philox([words] * 4, [words] * 2)]
    assert " ".join(f"{out:016x}" for out in got) == expected


@pytest.mark.parametrize("stream", STREAMS)
def test_tensor_operations_give_the_bits_of_numpy(stream):
    """A GPU uses tensor operations; they run on a CPU here."""
    by_tensors = philox_blocks(KEYS, stream, 5, torch.device("cpu"))
    for key, row in zip(KEYS, by_tensors, strict=True):
        generator = np.random.Philox(key=np.frombuffer(key, "<u8"), counter=np.array([0, *stream], np.uint64))
        assert np.array_equal(generator.random_raw(20).view(np.int64), row.flatten().numpy())
    assert torch.equal(random_draws(KEYS, stream, 77), by_tensors.view(torch.int16).flatten(1)[:, :77])


def test_another_device_uses_the_tensor_operations(monkeypatch):
    """The meta device computes nothing, but only the tensor operations return a result on it."""
    from tokenuq_ml.models import philox as module

    monkeypatch.setattr(module, "numpy_draws", None)
    draws = random_draws(KEYS, STREAMS[1], 50, "meta")
    assert draws.shape == (3, 50) and draws.dtype == torch.int16 and draws.device.type == "meta"


def test_a_larger_count_begins_with_the_draws_of_a_smaller_one():
    few, many = random_draws(KEYS, STREAMS[1], 5), random_draws(KEYS, STREAMS[1], 5 * DRAWS_PER_BLOCK)
    assert torch.equal(few, many[:, :5])
