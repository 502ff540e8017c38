"""The knobs of a synthetic language: the keys `grammar` and `changes` of a dataset, and `grid` of a study.

The package `data/language` writes its documents and knows the true distribution of every token.
"""

import itertools
import math
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator

from tokenuq_ml.config.base import Spec

Slot = Literal["structure", "copy", "computation", "fact", "choice"]
SLOTS: tuple[Slot, ...] = get_args(Slot)
"""How a response token is decided."""
ITEM_SLOTS = SLOTS[1:]
"""The slots that an item of a prompt asks for; structure is around them."""
World = Literal["pre", "post"]
"""`pre` is pre-trained and later out of distribution; `post` is post-trained."""
WORLDS: tuple[World, ...] = get_args(World)

MOST_WORDS = 6400
"""Words that two syllables give: the most keys, and the most values."""
MOST_CHOICES = 400
_ROUNDING = 1e-9

Share = Annotated[float, Field(ge=0, le=1)]
Zipf = Annotated[
    float, Field(ge=0, le=4, description="exponent: the key of rank r is asked for with a probability ~ r^-zipf")
]
Noise = Annotated[
    float, Field(ge=0, lt=1, description="share of facts whose value is replaced by one drawn from all values")
]


class LanguageChanges(Spec):
    """Knobs that a dataset changes in its language: those that leave words, facts, choices and forms as they are.

    So a model that was pre-trained on the language knows the words of the dataset too.
    """

    ADDED_LATER: ClassVar[frozenset[str]] = frozenset({"noise", "zipf"})

    noise: Noise | None = Field(default=None, description="instead of the language's")
    zipf: Zipf | None = Field(default=None, description="instead of the language's")

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        if not self.fields():
            raise ValueError(f"'changes' is empty; give one of {', '.join(type(self).model_fields)}, or remove it")
        return self


class GrammarSpec(Spec):
    """The knobs of a language."""

    facts: Annotated[int, Field(gt=1, le=MOST_WORDS, description="keys, each of which has one value per world")] = 160
    values: Annotated[int, Field(gt=1, le=MOST_WORDS, description="words that facts have as values")] = 40
    zipf: Zipf = 1.3
    noise: Noise = 0.0
    topics: Annotated[int, Field(gt=0, le=MOST_CHOICES, description="topics of choices, with a distribution each")] = 2
    choices: Annotated[int, Field(gt=1, le=MOST_CHOICES, description="words to choose from")] = 12
    choice_entropy: Annotated[float, Field(gt=0, description="entropy of each choice, nats")] = 2.0
    items: Annotated[int, Field(gt=0, le=12, description="items of a prompt, each of which asks for one slot")] = 5
    shares: dict[Slot, Share] = Field(
        default={"structure": 0.5, "copy": 0.05, "computation": 0.05, "fact": 0.15, "choice": 0.25},
        description="slot -> its share of the response tokens",
    )
    shuffled: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of the pre-training documents that are in the form of the world `post`, "
            "with facts and choices drawn at random",
        ),
    ] = 0.25

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.choice_entropy > math.log(self.choices) + _ROUNDING:
            raise ValueError(
                f"'choice_entropy' is {self.choice_entropy:g}, and {self.choices} choices have at most "
                f"{math.log(self.choices):.4g} nats; lower it or raise 'choices'"
            )
        missing = [slot for slot in SLOTS if slot not in self.shares]
        if missing:
            raise ValueError(f"'shares' has no {missing[0]!r}: give a share of each of {', '.join(SLOTS)}")
        total = math.fsum(self.shares.values())
        if abs(total - 1) > _ROUNDING:
            raise ValueError(f"'shares' add up to {total:g}; they are shares of all response tokens, so make it 1")
        if not any(self.shares[slot] for slot in ITEM_SLOTS):
            raise ValueError("'shares' is all structure; give a share to copy, computation, fact or choice")
        if self.structure_words < 1:
            raise ValueError(
                f"'shares': {self.shares['structure']:g} of structure is less than one token of a response of "
                f"{self.items} items, and the end of the turn is one; raise it, or 'items'"
            )
        return self

    @property
    def structure_words(self) -> int:
        """Structure tokens of a response, its end of turn included: as many as the share asks for, rounded."""
        share = self.shares["structure"]
        return round(self.items * share / (1 - share)) if share < 1 else 0

    def changed(self, changes: LanguageChanges | None) -> "GrammarSpec":
        """Return the grammar with the knobs of a dataset that changes some."""
        return self if changes is None else GrammarSpec(**{**self.fields(), **changes.fields()})


class GridSpec(Spec):
    """Knobs of a language, each with the values that are tried: every combination of them is a cell."""

    noise: tuple[Noise, ...] | None = Field(default=None, description="values, each a study of its own")
    zipf: tuple[Zipf, ...] | None = Field(default=None, description="values, each a study of its own")

    @property
    def values(self) -> dict[str, tuple[float, ...]]:
        """Knob -> its values, of the knobs that are listed."""
        listed = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: values for key, values in listed.items() if values is not None}

    @property
    def cells(self) -> list[LanguageChanges]:
        """The knobs of each cell, the last one changing fastest."""
        combinations = itertools.product(*self.values.values())
        return [LanguageChanges(**dict(zip(self.values, values, strict=True))) for values in combinations]

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if not self.values:
            raise ValueError(
                f"'grid' lists no knob; give values of {' or '.join(type(self).model_fields)}, or remove it"
            )
        for key, values in self.values.items():
            if not values:
                raise ValueError(f"{key!r} is empty; give at least one value, or remove it")
            if len(set(values)) < len(values):
                raise ValueError(f"{key!r} holds a value twice: {', '.join(map(str, values))}; remove one")
        return self
