"""The grammar of a synthetic language: from the items of a document to its prompt, and to the distribution of each
response token.

A document has a fixed number of items. Each asks for one slot: to copy a key, to add two numbers, for the value of a
key (a fact), or for a choice about a topic. The response answers them in order. What is around the answers is
structure: it follows from the prompt. Generation draws from the distributions of `slots`, and the truth is those
distributions, so that they cannot differ. Does not import torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple

from tokenuq_ml.config.language import ITEM_SLOTS, WORLDS, GrammarSpec, LanguageChanges, Slot, World
from tokenuq_ml.data.language.words import END, LARGEST_NUMBER, Words
from tokenuq_ml.data.language.worlds import WorldFacts, drawn, entropy


class Item(NamedTuple):
    """What one part of a prompt asks for."""

    slot: Slot
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Distribution:
    """The true distribution of one response token."""

    slot: Slot
    support: tuple[str, ...]
    """The words that are possible."""
    probabilities: tuple[float, ...]
    clean: tuple[float, ...]
    """The same without label noise."""

    @property
    def entropy(self) -> float:
        """Its entropy, nats."""
        return entropy(self.probabilities)

    def loss(self, word: str) -> float:
        """Return -log of a word's probability, nats.

        Raises:
            ValueError: the word is not possible.
        """
        return -math.log(self.probabilities[self.support.index(word)]) + 0.0

    def draw(self, draw: Random) -> str:
        """Return a word, drawn from the distribution."""
        return self.support[drawn(list(accumulate(self.probabilities)), draw)]


@dataclass(frozen=True)
class Form:
    """Which world a document is of.

    `shuffled` documents have the form of the world, but their facts and choices are drawn from all words at random.
    """

    world: World
    shuffled: bool = False


class Language:
    """A language: its words, its worlds, and the distribution of every response token.

    Args:
        grammar: the knobs.
        seed: of facts and choices.
    """

    def __init__(self, grammar: GrammarSpec, seed: int):
        self.grammar, self.seed, self.words = grammar, seed, Words.of(grammar)
        self.worlds = {world: WorldFacts(grammar, self.words, world, seed) for world in WORLDS}

    @property
    def fields(self) -> dict[str, Any]:
        """What defines the language, as plain JSON values."""
        return {"grammar": self.grammar.fields(), "seed": self.seed}

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> "Language":
        """Return the language of its `fields`."""
        return cls(GrammarSpec(**fields["grammar"]), fields["seed"])

    def changed(self, changes: LanguageChanges | None) -> "Language":
        """Return the language with other noise or rarity. Words, facts, choices and forms stay as they are."""
        return self if changes is None else Language(self.grammar.changed(changes), self.seed)

    def draw_items(self, form: Form, draw: Random) -> tuple[Item, ...]:
        """Return the items of a new document."""
        shares = [self.grammar.shares[slot] for slot in ITEM_SLOTS]
        return tuple(self._draw_item(slot, form, draw) for slot in draw.choices(ITEM_SLOTS, shares, k=self.words.items))

    def _draw_item(self, slot: Slot, form: Form, draw: Random) -> Item:
        if slot == "copy":
            return Item(slot, (draw.choice(self.words.keys),))
        if slot == "computation":
            return Item(slot, (str(draw.randint(0, LARGEST_NUMBER)), str(draw.randint(0, LARGEST_NUMBER))))
        if slot == "fact":
            return Item(slot, (self.worlds[form.world].draw_key(draw),))
        return Item(slot, (draw.choice(self.words.topics),))

    def prompt(self, form: Form, items: Sequence[Item]) -> str:
        """Return the text of the prompt. The worlds put the words of an item in another order."""
        words: list[str] = []
        for number, (slot, arguments) in enumerate(items):
            mark, verb = self.words.mark(form.world, number), self.words.verb(form.world, slot)
            words += [mark, verb, *arguments] if form.world == "pre" else [*arguments, verb, mark]
        return " ".join(words)

    def slots(self, form: Form, items: Sequence[Item]) -> list[Distribution]:
        """Return the distribution of each response token, the end of the turn included.

        Each is known from the prompt and the response tokens before it.
        """
        before = self.grammar.structure_words - 1
        found: list[Distribution] = []
        for number, item in enumerate(items):
            length = (number + 1) * before // len(items) - number * before // len(items)
            phrase = self.words.phrase(form.world, item.slot, number, length)
            found += [*(_certain("structure", word) for word in phrase), self._answer(form, item)]
        return [*found, _certain("structure", END)]

    def _answer(self, form: Form, item: Item) -> Distribution:
        """Return the distribution of what an item asks for."""
        if item.slot == "copy":
            return _certain(item.slot, item.arguments[0])
        if item.slot == "computation":
            return _certain(item.slot, str(sum(map(int, item.arguments))))
        if form.shuffled:
            return _uniform(item.slot, self.words.values if item.slot == "fact" else self.words.choices)
        if item.slot == "fact":
            return self._fact(self.worlds[form.world].value_of[item.arguments[0]])
        probabilities = tuple(self.worlds[form.world].choices[item.arguments[0]])
        return Distribution(item.slot, self.words.choices, probabilities, probabilities)

    def _fact(self, value: str) -> Distribution:
        noise, values = self.grammar.noise, self.words.values
        if not noise:
            return _certain("fact", value)
        clean = tuple(float(word == value) for word in values)
        return Distribution("fact", values, tuple(noise / len(values) + (1 - noise) * one for one in clean), clean)


def _certain(slot: Slot, word: str) -> Distribution:
    return Distribution(slot, (word,), (1.0,), (1.0,))


def _uniform(slot: Slot, words: tuple[str, ...]) -> Distribution:
    probabilities = (1 / len(words),) * len(words)
    return Distribution(slot, words, probabilities, probabilities)
