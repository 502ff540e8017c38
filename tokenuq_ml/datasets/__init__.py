"""Sources of examples: one file a format, all yielding the same `Example`.

Knows conversations and splits; neither tokens nor tables.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import SPLITS, DatasetSpec


@dataclass(frozen=True)
class Example:
    """One conversation: `messages` of role and content; `source` says where it comes from.

    `split` is empty until one is drawn.
    """

    id: str
    split: str
    messages: list[dict[str, str]]
    source: dict = field(default_factory=dict)

    @property
    def question(self) -> str:
        """What the user says first, but for case and white space: two examples of one question are one too many."""
        first = next((message["content"] for message in self.messages if message["role"] == "user"), "")
        return re.sub(r"\s+", " ", first.casefold()).strip()

    @property
    def row(self) -> dict:
        """A row of the table `examples`."""
        return {
            "example_id": self.id,
            "split": self.split,
            "messages": self.messages,
            "source": json.dumps(self.source, ensure_ascii=False, sort_keys=True),
        }


@dataclass(frozen=True)
class LoadedExamples:
    """A dataset's examples, and what was noticed on the way."""

    examples: list[Example]
    duplicates_dropped: int = 0

    @property
    def metrics(self) -> dict[str, int]:
        """Rows of each split, repeated questions left out and, where templates are known, how many recur."""
        counts = Counter(example.split for example in self.examples)
        return {
            **{f"rows_{split}": count for split, count in counts.items()},
            "duplicate_questions_dropped": self.duplicates_dropped,
            **_template_overlap(self.examples),
        }


def _template_overlap(examples: Sequence[Example]) -> dict[str, int]:
    """How many question templates of test occur in train; empty where test has no known template."""
    known = [example for example in examples if example.source.get("template") is not None]
    templates = {split: [e.source["template"] for e in known if e.split == split] for split in ("train", "test")}
    if not templates["test"]:
        return {}
    train, test = set(templates["train"]), templates["test"]
    return {
        "test_templates": len(set(test)),
        "test_templates_shared_with_train": len(set(test) & train),
        "test_examples_sharing_train_template": sum(template in train for template in test),
    }


def load_examples(spec: DatasetSpec) -> LoadedExamples:
    """Read a dataset.

    Raises:
        InputError: a package or file is missing, a row is broken, or there are too few rows.
    """
    from tokenuq_ml.datasets import alpaca_eval, gym, ifeval, messages

    loaders = {
        "reasoning_gym": gym.load,
        "alpaca_eval": alpaca_eval.load,
        "ifeval": ifeval.load,
        "messages": messages.load,
    }
    return loaders[spec.format](spec)


def example_id(dataset: str, number: int) -> str:
    """`<dataset>/<number>`, padded so that ids sort as numbers do."""
    return f"{dataset}/{number:06d}"


def distinct(examples: Iterable[Example]) -> list[Example]:
    """The first example of each question, in order."""
    first: dict[str, Example] = {}
    for example in examples:
        first.setdefault(example.question, example)
    return list(first.values())


def draw_splits(spec: DatasetSpec, examples: Sequence[Example], where: str) -> LoadedExamples:
    """Examples with a split each, in the order given; of the rest only how many repeat a question.

    The first of a shuffle seeded by the dataset's name and seed, split by split, so that
    the same rows are drawn on any machine and no question is in two splits.

    Raises:
        InputError: fewer distinct questions than `sizes` asks for.
    """
    usable, wanted = distinct(examples), sum(spec.sizes.values())
    if len(usable) < wanted:
        raise InputError(
            f"{where}: holds {len(usable)} distinct questions, `sizes` of {spec.name} asks for {wanted}; lower `sizes`"
        )
    order = list(range(len(usable)))
    random.Random(f"{spec.name}|{spec.seed}").shuffle(order)
    assigned, start = {}, 0
    for split in SPLITS:
        size = spec.sizes.get(split, 0)
        assigned.update(dict.fromkeys(order[start : start + size], split))
        start += size
    drawn = [replace(usable[index], split=assigned[index]) for index in sorted(assigned)]
    return LoadedExamples(drawn, len(examples) - len(usable))


def take_named_splits(spec: DatasetSpec, examples: Sequence[Example], where: str) -> LoadedExamples:
    """Of examples that name their splits as many as `sizes` asks for, drawn as in `draw_splits`.

    Raises:
        InputError: a split holds too few distinct questions, or two splits share one.
    """
    asked = [example for example in examples if example.split in spec.sizes]
    split_of: dict[str, Example] = {}
    for example in asked:
        first = split_of.setdefault(example.question, example)
        if first.split != example.split:
            raise InputError(
                f"{where}: {first.id} in split {first.split!r} and {example.id} in {example.split!r} ask "
                "the same question (numbers are lines); take one of them out"
            )
    drawn, dropped = [], 0
    for split, size in spec.sizes.items():
        one_split = spec.model_copy(update={"sizes": {split: size}})
        part = draw_splits(one_split, [e for e in asked if e.split == split], f"{where}: split {split!r}")
        drawn += part.examples
        dropped += part.duplicates_dropped
    return LoadedExamples(sorted(drawn, key=lambda example: example.id), dropped)
