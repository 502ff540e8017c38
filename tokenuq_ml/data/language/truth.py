"""The true distribution of each response token of a tokenised document: the rows of `token_truth`.

Does not import torch.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.language.documents import Document
from tokenuq_ml.data.language.grammar import Distribution, Language
from tokenuq_ml.data.language.words import ASSISTANT, END
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Known:
    """A language, and the ids of its words."""

    language: Language
    ids: dict[str, int]


class TruthRows:
    """Rows of `token_truth` for documents in the tokens of a model.

    Args:
        tokenizer: of the model.
        model: its name, for errors.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", model: str):
        self._tokenizer, self._model = tokenizer, model
        self._known: dict[str, _Known] = {}

    def of(self, example: Example, input_ids: Sequence[int], response_mask: Sequence[bool]) -> Iterator[dict[str, Any]]:
        """Yield a row per response token of an example; none if it is not a document of a synthetic language.

        Args:
            example: the example.
            input_ids: its tokens, as they are stored.
            response_mask: true where a token is a response token.

        Raises:
            InputError: the model's tokenizer is not that of the language, or the document was changed.
        """
        document = Document.of(example)
        if document is None:
            return
        known = self._language(example, document)
        slots = known.language.slots(document.form, document.items)
        words = self._words(example, document, known.language, slots)
        ids = [known.ids[word] for word in words]
        first = input_ids.index(known.ids[ASSISTANT]) + 1
        if list(input_ids[first:]) != ids[: len(input_ids) - first]:
            raise InputError(self._refusal(example))
        for position, (slot, word) in enumerate(zip(slots, words, strict=True), first):
            if position < len(response_mask) and response_mask[position]:
                yield _row(example, position, slot, word, known.ids)

    def _language(self, example: Example, document: Document) -> _Known:
        key = json.dumps(document.language, sort_keys=True)
        if key not in self._known:
            language = Language.from_fields(document.language)
            self._known[key] = _Known(language, self._ids(example, language))
        return self._known[key]

    def _ids(self, example: Example, language: Language) -> dict[str, int]:
        """Return word -> id; the tokens of the tokenizer have to be the words of the language."""
        words = language.words.vocabulary
        encoded = self._tokenizer(list(words), add_special_tokens=False)["input_ids"]
        ids = [one[0] for one in encoded if len(one) == 1]
        if not len(self._tokenizer) == len(set(ids)) == len(words):
            raise InputError(self._refusal(example))
        return dict(zip(words, ids, strict=True))

    def _words(
        self, example: Example, document: Document, language: Language, slots: Sequence[Distribution]
    ) -> list[str]:
        """Return the words of the response, the end of the turn included."""
        prompt, response = example.messages[0]["content"], example.messages[-1]["content"]
        words = [*response.split(), END]
        possible = len(words) == len(slots) and all(w in slot.support for w, slot in zip(words, slots, strict=True))
        if len(example.messages) != 2 or prompt != language.prompt(document.form, document.items) or not possible:
            raise InputError(
                f"example {example.id}: its text is not what its language says, so that the truth of its tokens is not "
                "known; take the documents of the language as they are"
            )
        return words

    def _refusal(self, example: Example) -> str:
        dataset = example.id.partition("/")[0]
        return (
            f"dataset {dataset}: is written in a synthetic language, whose words are not single tokens of the model "
            f"{self._model}; name a model with `source: pretrain` and the same `language:` as `model:` of the study"
        )


def _row(example: Example, position: int, slot: Distribution, word: str, ids: dict[str, int]) -> dict[str, Any]:
    order = sorted(range(len(slot.support)), key=lambda number: ids[slot.support[number]])
    return {
        "example_id": example.id,
        "position": position,
        "slot": slot.slot,
        "true_entropy": slot.entropy,
        "true_loss": slot.loss(word),
        "support": [ids[slot.support[number]] for number in order],
        "probabilities": [slot.probabilities[number] for number in order],
        "clean_probabilities": [slot.clean[number] for number in order],
    }
