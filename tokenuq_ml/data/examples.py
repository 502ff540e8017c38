"""Conversations of a dataset, and figures about them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Turn = dict[str, Any]
"""A turn of a conversation: `role` and `content`, and what chat templates read besides (`TURN_FIELDS`)."""

TURN_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name")

TEXT_ROLE = "text"
"""Role of the only turn of an example that is text and no conversation (format `raw_text`)."""


QUESTION_TURN = "question_turn"
"""Key of `source`: the index of the user's turn that asks, if a history or an untrained prompt comes before it."""


@dataclass(frozen=True)
class Example:
    """One conversation, and its origin in `source`.

    `split` is empty until one is drawn.
    """

    id: str
    split: str
    messages: list[Turn]
    source: dict[str, Any] = field(default_factory=dict)
    turn_weights: list[float] | None = None
    """The weight of each turn in training; None: 1 for assistant turns. Turns of other roles have weight 0."""
    template: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template: `tools`, `chat_template_kwargs`."""
    untrained_spans: list[list[int]] | None = None
    """`[turn, start, end]`: characters of a trained turn's content that are not trained; turns count from 0."""

    @property
    def is_text(self) -> bool:
        """Whether the example is text and no conversation: it has one turn, of the role `text`."""
        return [turn["role"] for turn in self.messages] == [TEXT_ROLE]

    @property
    def question(self) -> str:
        """The first user message, or the text of raw text, without case and extra white space.

        If turns come before the one that asks (`QUESTION_TURN`), all user messages up to it. No question is in two
        splits of a dataset.
        """
        asks, asked = ("user", TEXT_ROLE), self.source.get(QUESTION_TURN)
        turns = self.messages if asked is None else self.messages[: asked + 1]
        texts = [turn["content"] for turn in turns if turn["role"] in asks]
        return " ".join(" ".join(texts[:1] if asked is None else texts).casefold().split())

    @property
    def row(self) -> dict[str, Any]:
        """The row of the table `examples`."""
        is_plain = all(turn.keys() == {"role", "content"} for turn in self.messages)
        return {
            "example_id": self.id,
            "split": self.split,
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in self.messages],
            "source": json.dumps(self.source, ensure_ascii=False, sort_keys=True),
            "turns": None if is_plain else json.dumps(self.messages, ensure_ascii=False),
            "turn_weights": self.turn_weights,
            # Keys keep their order: templates print tools as they are.
            "template": json.dumps(self.template, ensure_ascii=False) if self.template else None,
            "untrained_spans": self.untrained_spans,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Example":
        """Return the example of a row of the table `examples`; tables of earlier versions lack the optional columns."""
        turns, template = row.get("turns"), row.get("template")
        return cls(
            row["example_id"],
            row["split"],
            row["messages"] if turns is None else json.loads(turns),
            json.loads(row.get("source") or "{}"),
            row.get("turn_weights"),
            json.loads(template) if template else {},
            row.get("untrained_spans"),
        )


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
