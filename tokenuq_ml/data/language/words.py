"""The words of a synthetic language, by what they are for. Both worlds share all of them.

Keys, values, choices and topics are two syllables; their last letters tell them apart. Structure words belong to one
world. Does not import torch.
"""

from dataclasses import dataclass
from itertools import product

from tokenuq_ml.config.language import ITEM_SLOTS, MOST_WORDS, WORLDS, GrammarSpec, Slot, World

LARGEST_NUMBER = 9
"""Operands of a computation are 0 to this number."""
PAD, USER, ASSISTANT, END, UNKNOWN = "<pad>", "<user>", "<assistant>", "<end>", "<unk>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END)

_SYLLABLES = tuple(consonant + vowel for consonant, vowel in product("bcdfghjklmnprstv", "aeiou"))
_STEP = 2617
"""No common divisor with 6400: the words of consecutive numbers look unlike each other."""
_MARKS = {
    "pre": "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(),
    "post": "alpha bravo charlie delta epsilon foxtrot gamma hotel india juliett kappa lambda".split(),
}
_VERBS = {
    "pre": dict(zip(ITEM_SLOTS, ("repeat", "add", "recall", "choose"), strict=True)),
    "post": dict(zip(ITEM_SLOTS, ("echo", "sum", "lookup", "pick"), strict=True)),
}
_STEMS = {
    "pre": dict(zip(ITEM_SLOTS, ("again", "makes", "means", "takes"), strict=True)),
    "post": dict(zip(ITEM_SLOTS, ("says", "totals", "holds", "likes"), strict=True)),
}


@dataclass(frozen=True)
class Words:
    """The words of a language."""

    keys: tuple[str, ...]
    values: tuple[str, ...]
    choices: tuple[str, ...]
    topics: tuple[str, ...]
    numbers: tuple[str, ...]
    phrase_length: int
    """Structure words before a slot, at most."""
    items: int

    @classmethod
    def of(cls, grammar: GrammarSpec) -> "Words":
        """Return the words of a language with these knobs."""
        return cls(
            keys=_two_syllables(grammar.facts, ""),
            values=_two_syllables(grammar.values, "n"),
            choices=_two_syllables(grammar.choices, "x"),
            topics=_two_syllables(grammar.topics, "z"),
            numbers=tuple(str(number) for number in range(2 * LARGEST_NUMBER + 1)),
            phrase_length=-(-(grammar.structure_words - 1) // grammar.items),
            items=grammar.items,
        )

    def mark(self, world: World, number: int) -> str:
        """Return the word that counts the items of a prompt and its response."""
        return _MARKS[world][number]

    def verb(self, world: World, slot: Slot) -> str:
        """Return the word by which a prompt asks for a slot."""
        return _VERBS[world][slot]

    def phrase(self, world: World, slot: Slot, number: int, length: int) -> list[str]:
        """Return the structure words before the slot of an item, `length` of them: its mark, then words of its kind."""
        stem = _STEMS[world][slot]
        following = [stem, *(f"{stem}{count}" for count in range(2, length))]
        return [self.mark(world, number), *following][:length]

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All words, special tokens first."""
        structure: list[str] = []
        for world in WORLDS:
            structure += (self.mark(world, number) for number in range(self.items))
            for slot in ITEM_SLOTS:
                structure += [self.verb(world, slot), *self.phrase(world, slot, 0, self.phrase_length)[1:]]
        return (*SPECIAL, *structure, *self.numbers, *self.topics, *self.choices, *self.values, *self.keys)


def _two_syllables(count: int, ending: str) -> tuple[str, ...]:
    pairs = (divmod(number * _STEP % MOST_WORDS, len(_SYLLABLES)) for number in range(count))
    return tuple(f"{_SYLLABLES[first]}{_SYLLABLES[second]}{ending}" for first, second in pairs)
