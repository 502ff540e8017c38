"""Sources of examples: one file a format, all yielding the same `Example`.

Knows conversations and splits; neither tokens nor tables.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import SPLITS, DatasetSpec


@dataclass(frozen=True)
class Example:
    """One conversation: `messages` of role and content; `source` says where it comes from."""

    id: str
    split: str
    messages: list[dict[str, str]]
    source: dict = field(default_factory=dict)

    @property
    def question(self) -> str:
        """What the user says, but for case and white space: two examples of one question are one too many."""
        said = "\n".join(message["content"] for message in self.messages if message["role"] == "user")
        return re.sub(r"\s+", " ", said.casefold()).strip()

    @property
    def row(self) -> dict:
        """A row of the table `examples`."""
        return {"example_id": self.id, "split": self.split, "messages": self.messages,
                "source": json.dumps(self.source, ensure_ascii=False, sort_keys=True)}


@dataclass(frozen=True)
class LoadedExamples:
    """A dataset's examples, and what was noticed on the way."""

    examples: list[Example]
    duplicates_dropped: int = 0


def load_examples(spec: DatasetSpec) -> LoadedExamples:
    """Read a dataset.

    Raises:
        InputError: a package or file is missing, a row is broken, or there are too few rows.
    """
    from tokenuq_ml.datasets import alpaca_eval, gym, ifeval, messages

    loaders = {"reasoning_gym": gym.load, "alpaca_eval": alpaca_eval.load, "ifeval": ifeval.load,
               "messages": messages.load}
    return loaders[spec.format](spec)


def example_id(dataset: str, number: int) -> str:
    """`<dataset>/<number>`, padded so that ids sort as numbers do."""
    return f"{dataset}/{number:06d}"


def draw_splits(spec: DatasetSpec, rows: Sequence[int], where: str) -> dict[int, str]:
    """Row number -> split: the first of a shuffle seeded by the dataset's name and seed, split by split.

    Raises:
        InputError: fewer rows than `sizes` asks for.
    """
    wanted = sum(spec.sizes.values())
    if len(rows) < wanted:
        raise InputError(f"{where}: holds {len(rows)} usable rows, `sizes` of {spec.name} asks for {wanted}; lower `sizes`")
    order = list(rows)
    random.Random(f"{spec.name}|{spec.seed}").shuffle(order)
    assigned, start = {}, 0
    for split in SPLITS:
        size = spec.sizes.get(split, 0)
        assigned.update(dict.fromkeys(order[start : start + size], split))
        start += size
    return assigned
