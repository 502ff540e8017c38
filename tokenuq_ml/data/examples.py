"""Conversations of a dataset, and figures about them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """One conversation: `messages` with role and content, and its origin in `source`.

    `split` is empty until one is drawn.
    """

    id: str
    split: str
    messages: list[dict[str, str]]
    source: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The first user message, without case and extra white space; a dataset uses each question once."""
        first = next((message["content"] for message in self.messages if message["role"] == "user"), "")
        return " ".join(first.casefold().split())

    @property
    def row(self) -> dict[str, Any]:
        """The row of the table `examples`."""
        return {
            "example_id": self.id,
            "split": self.split,
            "messages": self.messages,
            "source": json.dumps(self.source, ensure_ascii=False, sort_keys=True),
        }


def example_id(dataset: str, number: int, part: str = "") -> str:
    """Return `<dataset>/[<part>/]<number>`, padded so that ids sort like numbers."""
    return "/".join([dataset, *([part] if part else []), f"{number:06d}"])


def template_overlap(examples: Sequence[Example]) -> dict[str, int]:
    """Return how many question templates of test also occur in train; empty if no template of test is known."""
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


def rows_by_split(examples: Sequence[Example]) -> dict[str, int]:
    """Return `rows_<split>` -> number of examples, for each split."""
    return {f"rows_{split}": count for split, count in Counter(example.split for example in examples).items()}
