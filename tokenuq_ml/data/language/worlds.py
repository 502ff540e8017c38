"""What a world of a synthetic language says: its facts, how often each is asked for, and its choices.

Drawn once from the language's seed. Does not import torch.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from random import Random

from tokenuq_ml.config.language import GrammarSpec, World
from tokenuq_ml.data.language.words import Words
from tokenuq_ml.seeding import language_generator

_STEPS = 200
"""Halvings of the interval that holds the decay of a choice: below the rounding of a float64."""


class WorldFacts:
    """The facts and choices of one world.

    Args:
        grammar: the language's knobs.
        words: its words.
        world: its name.
        seed: the language's seed.
    """

    def __init__(self, grammar: GrammarSpec, words: Words, world: World, seed: int):
        draw = language_generator(seed, f"facts of {world}")
        self.value_of = {key: draw.choice(words.values) for key in words.keys}
        self.by_rank = shuffled(words.keys, draw)
        """Keys from the one that is asked for most."""
        self._cumulative = list(accumulate(rank**-grammar.zipf for rank in range(1, len(words.keys) + 1)))
        decaying = decaying_probabilities(grammar.choices, grammar.choice_entropy)
        self.choices = {
            topic: _in_order(words.choices, shuffled(words.choices, draw), decaying) for topic in words.topics
        }
        """Topic -> the probability of each of the language's choices."""

    def draw_key(self, draw: Random) -> str:
        """Return a key, drawn by Zipf's law."""
        return self.by_rank[drawn(self._cumulative, draw)]

    @cached_property
    def rank_of(self) -> dict[str, int]:
        """Key -> its rank, from 1: the one that is asked for most."""
        return {key: rank for rank, key in enumerate(self.by_rank, 1)}


def _in_order(words: Sequence[str], order: Sequence[str], probabilities: Sequence[float]) -> list[float]:
    """Return the probability of each word, given those of the words in another order."""
    by_word = dict(zip(order, probabilities, strict=True))
    return [by_word[word] for word in words]


def shuffled(items: Sequence[str], draw: Random) -> list[str]:
    """Return the items in a random order."""
    order = list(items)
    draw.shuffle(order)
    return order


def drawn(cumulative: Sequence[float], draw: Random) -> int:
    """Return an index, drawn with probabilities whose running sums (not necessarily up to 1) are given."""
    return min(bisect_right(cumulative, draw.random() * cumulative[-1]), len(cumulative) - 1)


def entropy(probabilities: Sequence[float]) -> float:
    """Return the entropy in nats."""
    return math.fsum(-p * math.log(p) for p in probabilities if p) + 0.0


def decaying_probabilities(count: int, nats: float) -> list[float]:
    """Return probabilities that decay geometrically and have a given entropy, at most log(count)."""

    def of(decay: float) -> list[float]:
        weights = [math.exp(-decay * number) for number in range(count)]
        total = math.fsum(weights)
        return [weight / total for weight in weights]

    low, high = 0.0, 50.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if entropy(of(middle)) > nats else (low, middle)
    return of(low)
