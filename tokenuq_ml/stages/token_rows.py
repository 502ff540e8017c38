"""Decisions on tokenised examples: kept, cut, or rejected; with the counts of a study's datasets."""

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.tokenization import ConversationTokens, describe
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEPT_SHARES = (95, 99)
"""Percent of examples for which the sufficient `max_length` is named."""
_UNUSABLE = ("template error", "special tokens", "not encodable", "answer not found")
"""Reasons of examples that have no tokens, or no answer that can be trained: rejected whatever `template_drops` is."""


class Rejection(NamedTuple):
    """Why an example is left out of `tokenized_dataset`."""

    reason: str
    detail: str


STUDYS_REMEDY = (
    "Set `chat_template:` of the model in models.yaml to a template that renders them, or `template_drops:` of the "
    "study in studies.yaml to `reject`, which leaves them out, or to `allow`, which trains what is rendered"
)


@dataclass(frozen=True)
class TokenizationRules:
    """The keys of a study that decide about its tokens; see `StudySpec`."""

    model: str
    max_length: int
    truncation: str = "right"
    max_truncated_share: float = 0.05
    template_drops: str = "refuse"
    special_tokens_in_text: str = "encode"


@dataclass
class DatasetTokens:
    """What becomes of the examples of one dataset.

    Args:
        name: of the dataset.
        rules: of the study.
        limited: whether `max_truncated_share` applies: to the dataset that is trained, not to `ood` ones, whose cut
            answers are only measured.
    """

    name: str
    rules: TokenizationRules
    limited: bool = True
    read: int = 0
    truncated: int = 0
    special: int = 0
    templated: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    """Names in rows that the template has no use for -> examples."""
    rejected: Counter[str] = field(default_factory=Counter)
    incomplete: int = 0
    """Examples that the template does not render as their rows say."""
    first_fault: str = ""
    splits: set[str] = field(default_factory=set)
    """Splits that its examples are in."""
    divided: int = 0
    """Raw texts that are divided, since they have more than `max_length` tokens."""
    losing: int = 0
    """Examples that lose response tokens by truncation."""
    needed: array = field(default_factory=lambda: array("I"))
    """Tokens that an example needs to keep all response tokens, for all examples that have any."""

    def decide(self, example: Example, tokens: ConversationTokens) -> Rejection | None:
        """Count an example; return why it is left out, or None if it is kept, cut after `max_length`."""
        self.read += 1
        self.splits.add(example.split)
        self.special += tokens.has_special_tokens
        self.templated += tokens.looks_templated
        self.ignored.update(tokens.ignored)
        rejection = self._fault(example, tokens) or self._truncation(tokens)
        if rejection is not None:
            self.rejected[rejection.reason] += 1
        return rejection

    def _fault(self, example: Example, tokens: ConversationTokens) -> Rejection | None:
        if not tokens.faults:
            return None
        first = next((fault for fault in tokens.faults if fault.reason in _UNUSABLE), tokens.faults[0])
        words = describe(first)
        self.first_fault = self.first_fault or f"the first: example {example.id}: {words}"
        if first.reason in _UNUSABLE:
            return Rejection(first.reason, words)
        self.incomplete += 1
        return Rejection(first.reason, words) if self.rules.template_drops == "reject" else None

    def _truncation(self, tokens: ConversationTokens) -> Rejection | None:
        needed, length = tokens.needed, self.rules.max_length
        self.truncated += len(tokens.input_ids) > length
        if not needed:
            return Rejection("no answer", "no turn of it is trained")
        self.needed.append(needed)
        if needed <= length:
            return None
        self.losing += 1
        if self.rules.truncation == "reject":
            return Rejection("truncated", f"{needed} tokens, and max_length is {length} (truncation: reject)")
        if not any(tokens.response_mask[:length]):
            return Rejection("truncated", f"no response token within {length} tokens; all of them take {needed}")
        return None

    # After all examples.

    def require_rendered(self, remedy: str = STUDYS_REMEDY) -> None:
        """Check what the template makes of the examples.

        Args:
            remedy: what to do about rows that are rendered incompletely.

        Raises:
            InputError: it renders examples incompletely and `template_drops` is `refuse`, or it renders none.
        """
        where = f"model {self.rules.model}, dataset {self.name}"
        if self.incomplete and self.rules.template_drops == "refuse":
            raise InputError(
                f"{where}: {self.incomplete:,} of {self.read:,} examples are not rendered as their rows say; "
                f"{self.first_fault}. {remedy}"
            )
        if self.read and sum(self.rejected[reason] for reason in _UNUSABLE) == self.read:
            raise InputError(f"{where}: no example can be tokenised; {self.first_fault}")

    def require_untruncated(self) -> None:
        """Check that few examples lose response tokens.

        Raises:
            InputError: more than `max_truncated_share` do.
        """
        if self.limited and self.losing > self.rules.max_truncated_share * len(self.needed):
            raise InputError(
                f"dataset {self.name}: {self.truncation_words}. More than the share `max_truncated_share: "
                f"{self.rules.max_truncated_share:g}` lose some: raise `max_length` or that share of the study in "
                "studies.yaml"
            )

    @property
    def truncation_words(self) -> str:
        """How many examples lose response tokens, and the lengths that would keep most."""
        lengths = " and ".join(f"{self.length_for(share)} keeps all of {share}%" for share in KEPT_SHARES)
        return (
            f"{self.losing:,} of {len(self.needed):,} examples lose response tokens or their end of turn at "
            f"max_length {self.rules.max_length}, and {self.rejected['truncated']:,} of them are left out; a "
            f"max_length of {lengths}"
        )

    def length_for(self, percent: int) -> int:
        """Return the length within which `percent` of the examples keep all response tokens."""
        ordered = sorted(self.needed)
        return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)] if ordered else 0

    @property
    def metrics(self) -> dict[str, int | float | str]:
        """Counts for the asset's metadata, without those that are 0."""
        counts: dict[str, int | float | str] = {
            f"losing_tokens_{self.name}": self.losing,
            f"divided_texts_{self.name}": self.divided,
            f"rendered_incompletely_{self.name}": self.incomplete,
            f"special_tokens_in_text_{self.name}": self.special,
            f"templated_text_{self.name}": self.templated,
            f"not_read_by_template_{self.name}": self._ignored_words,
            **{f"rejected_{reason.replace(' ', '_')}_{self.name}": n for reason, n in sorted(self.rejected.items())},
        }
        if self.losing:
            counts |= {f"max_length_{share}_{self.name}": self.length_for(share) for share in KEPT_SHARES}
        return {name: count for name, count in counts.items() if count}

    @property
    def warnings(self) -> list[str]:
        """Sentences about what a user should know."""
        found = []
        if self.losing:
            found.append(self.truncation_words)
        for reason, count in sorted(self.rejected.items()):
            if reason not in ("truncated", "no answer"):
                found.append(f"{count:,} of {self.read:,} examples are left out ({reason}); {self.first_fault}")
        if self.incomplete and self.rules.template_drops == "allow":
            found.append(f"{self.incomplete:,} of {self.read:,} examples are trained as rendered; {self.first_fault}")
        if self.special:
            how = "encoded as text" if self.rules.special_tokens_in_text == "encode" else "kept as special tokens"
            found.append(f"{self.special:,} of {self.read:,} examples hold special tokens in their text: {how}")
        if self.templated:
            found.append(
                f"{self.templated:,} of {self.read:,} examples hold the chat template's own header of an answer in "
                "their text: they may be templated already, and would be templated twice"
            )
        if self.ignored:
            found.append(f"the chat template does not read what rows give it: {self._ignored_words}")
        return [f"dataset {self.name}: {words}" for words in found]

    @property
    def _ignored_words(self) -> str:
        return ", ".join(f"{name} ({count:,})" for name, count in sorted(self.ignored.items()))


def require_embeddings(
    model: str, tokenizer: "PreTrainedTokenizerBase", vocabulary: int, example_id: str, ids: Sequence[int]
) -> None:
    """Check that the model has an embedding for every token of an example.

    Args:
        model: its name, for the message.
        tokenizer: its tokenizer.
        vocabulary: number of its embeddings: mostly more than the tokenizer has tokens, sometimes fewer.
        example_id: of the example.
        ids: its tokens.

    Raises:
        InputError: it lacks one.
    """
    token = max(ids, default=0)
    if token >= vocabulary:
        raise InputError(
            f"model {model}, example {example_id}: the token {tokenizer.convert_ids_to_tokens(token)!r} has the id "
            f"{token}, and the model has only {vocabulary} embeddings; remove it from the text or the chat template, "
            "or resize the model's embeddings"
        )
