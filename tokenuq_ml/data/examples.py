"""What a dataset is made of: one conversation, and all of them with what was noticed on the way.

Knows conversations and splits; neither where they come from nor tokens.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


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
        return " ".join(first.casefold().split())

    @property
    def row(self) -> dict:
        """A row of the table `examples`."""
        return {
            "example_id": self.id,
            "split": self.split,
            "messages": self.messages,
            "source": json.dumps(self.source, ensure_ascii=False, sort_keys=True),
        }


def example_id(dataset: str, number: int, part: str = "") -> str:
    """`<dataset>/[<part>/]<number>`, padded so that ids sort as numbers do."""
    return "/".join([dataset, *([part] if part else []), f"{number:06d}"])


def template_overlap(examples: Sequence[Example]) -> dict[str, int]:
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


def rows_by_split(examples: Sequence[Example]) -> dict[str, int]:
    """`rows_<split>` of each split."""
    return {f"rows_{split}": count for split, count in Counter(example.split for example in examples).items()}
