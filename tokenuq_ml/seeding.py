"""How seeds become random draws: the one place for each recipe.

Results are hashed, so the draws of a recipe must never change; `tests/ml/test_seeding.py` pins the first ones. A
recipe depends only on what the table lists: not on the device, the number of threads or the batching, and, except for
LoRA dropout in training, not on earlier draws.

| purpose | function | depends on | recipe |
|---|---|---|---|
| split a dataset | `shuffle_dataset` | dataset name, dataset seed | `random.Random`, as below |
| a synthetic language, and its documents | `language_generator` | seed, purpose | `random.Random`, as below |
| order training batches | `epoch_generator` | ablation seed, epoch | torch, seed `seed * 1_000_003 + epoch` |
| initialise an adapter | `seed_torch` | ablation (or teacher) seed | `torch.manual_seed(seed)` |
| LoRA dropout in training | `part_bits` | torch's global generator, part | SFC64 of `[draw, part]` |
| select by `random` | `step_generator` | ablation seed, step | `default_rng([seed, step])` |
| select by `fixed_random` | `example_generator` | ablation seed, example id | SFC64 of the example key |
| Monte-Carlo dropout masks | `example_key`, `philox_bits` | uncertainty seed, example id, stream | Philox4x64-10 |
| sample for the noise floor | `example_rank` | example id | order by SHA-256 of the id |
| resample examples | `bootstrap_generator` | evaluation seed | `default_rng(seed)` |
| resample a family's seeds | `family_seed_generator` | evaluation seed, seeds | `default_rng([S, seed, s + 1...])` |
| open choices in IF-Eval checkers | `seed_python` | example id | `random.seed(example_id)` |
| whatever lm-eval's tasks draw | `seeded_generators` | nothing | lm-eval's default seeds, global generators |
| probe a fast forward pass | `probe_generator` | nothing | torch, seed 0 |

A dataset is shuffled by a generator that the string `"<name>|<seed>"` seeds, and a synthetic language is drawn by one
that `"<seed>|<purpose>"` seeds. The example key is the 16-byte BLAKE2b
digest of `"<seed>|<example id>"`. The stream of a dropout mask is the layer (with the head), the sample and whether
features or attention probabilities are dropped (`models/keyed_masks.py`).

Four seeds go to other packages as they are: `TrainingArguments(seed=...)` (transformers), `create_dataset(seed=...)`
(reasoning-gym), `set_fewshot_seed` (lm-eval) and `DetectorFactory.seed` (langdetect).

Does not import torch at module level: dataset code must start without it.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, MutableSequence, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch


def shuffle_dataset(name: str, seed: int, order: MutableSequence[int]) -> None:
    """Shuffle row numbers of the dataset `name` in place."""
    random.Random(f"{name}|{seed}").shuffle(order)


def language_generator(seed: int, purpose: str) -> random.Random:
    """Return the generator of a part of a synthetic language: the facts of a world, or the documents of a split."""
    return random.Random(f"{seed}|{purpose}")


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the CPU generator that orders the batches of one epoch."""
    import torch

    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def seed_torch(seed: int) -> None:
    """Seed torch's global generators, from which a new adapter takes its weights."""
    import torch

    torch.manual_seed(seed)


def restored_generators() -> AbstractContextManager[None]:
    """Return a context that leaves torch's global generators, of the CPU and the current GPU, as they were."""
    import torch

    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])


@contextmanager
def seeded_generators(of_python: int, of_others: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch inside the context, and restore them.

    For libraries that draw from them.

    Args:
        of_python: seed of Python's generator.
        of_others: seed of those of numpy and torch.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with restored_generators():
        random.seed(of_python)
        np.random.seed(of_others)
        seed_torch(of_others)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def generator_states() -> list[torch.Tensor]:
    """Return the states of torch's global generators, of the CPU and the current GPU."""
    import torch

    gpu = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return [torch.get_rng_state(), *gpu]


@contextmanager
def replayed_generators(states: Sequence[torch.Tensor]) -> Iterator[None]:
    """Draw inside the context what was drawn after `generator_states` returned `states`; restore them afterwards."""
    import torch

    with restored_generators():
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.cuda.set_rng_state(state)
        yield


def part_bits(draw: int, part: int, words: int) -> NDArray[np.uint64]:
    """Return random bits for one part of a training dropout mask, `[words]`; threads draw parts independently.

    Args:
        draw: A draw from torch's global generator, so that a checkpoint's generator state decides the mask.
        part: Number of the part, from 0.
        words: Count of 64-bit words.
    """
    return np.random.SFC64([draw, part]).random_raw(words)


def step_generator(seed: int, step: int) -> np.random.Generator:
    """Return the generator for a draw that differs at each training step."""
    return np.random.default_rng([seed, step])


def example_key(seed: int, example_id: str) -> bytes:
    """Return the 16 bytes that stand for an example under a seed."""
    return hashlib.blake2b(f"{seed}|{example_id}".encode(), digest_size=16).digest()


def example_generator(seed: int, example_id: str) -> np.random.Generator:
    """Return the generator for a draw that an example keeps through all of training."""
    return np.random.Generator(np.random.SFC64(np.frombuffer(example_key(seed, example_id), "<u4")))


def philox_bits(key: bytes, stream: tuple[int, int, int], words: int) -> NDArray[np.uint64]:
    """Return the first 64-bit words of a Philox4x64-10 stream, `[words]`.

    Args:
        key: 16 bytes (`example_key`).
        stream: The upper three words of the counter. The lowest word counts blocks of four words from 1.
        words: Count of 64-bit words; a larger count begins with the words of a smaller one.
    """
    counter = np.array([0, *stream], np.uint64)
    return np.random.Philox(key=np.frombuffer(key, "<u8"), counter=counter).random_raw(words)


def example_rank(example_id: str) -> bytes:
    """Return the sort key that puts examples into an arbitrary order, the same for any order of reading."""
    return hashlib.sha256(example_id.encode()).digest()


def bootstrap_generator(seed: int) -> np.random.Generator:
    """Return the generator that resamples examples."""
    return np.random.default_rng(seed)


def family_seed_generator(seed: int, seeds: Sequence[int | None]) -> np.random.Generator:
    """Return the generator that resamples the seeds of a family; families with the same seeds draw the same ones.

    Args:
        seed: The evaluation's seed.
        seeds: The family's seeds; None for a model without one.
    """
    # Each seed plus one, so that a missing seed is 0; the count keeps this stream apart from that of the examples.
    return np.random.default_rng([len(seeds), seed, *(0 if one is None else one + 1 for one in seeds)])


def seed_python(example_id: str) -> None:
    """Seed Python's global generator for one example."""
    random.seed(example_id)


def probe_generator() -> torch.Generator:
    """Return the CPU generator for the random input on which two implementations are compared."""
    import torch

    return torch.Generator().manual_seed(0)
