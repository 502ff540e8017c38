"""Strings that end a generated answer, found as tokens arrive."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class StopStrings:
    """Says whether the last token of an answer completes one of the strings.

    Args:
        tokenizer: of the model.
        strings: may be empty.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]):
        self._tokenizer, self._strings = tokenizer, strings
        # A token has at least one byte. One more token, since the first of the window may be part of a character.
        self.window = 1 + max((len(string.encode()) for string in strings), default=0)
        """Last tokens of an answer that are read."""

    def __bool__(self) -> bool:
        """Return whether there is a string."""
        return bool(self._strings)

    def completed(self, answer: Sequence[int]) -> bool:
        """Return whether the tokens of an answer contain a string; called after each token."""
        if not self._strings:
            return False
        text = self._tokenizer.decode(answer[-self.window :])
        return any(string in text for string in self._strings)


def cut(text: str, stop: Sequence[str]) -> str:
    """Return the text before the first string of `stop`."""
    for string in stop:
        text = text.split(string, 1)[0]
    return text


class RowsEnd(StoppingCriteria):
    """Transformers' criterion for a batch: ends each row at the token that completes a string."""

    def __init__(self, stop: StopStrings, rows: int):
        self._stop, self._new = stop, 0
        self.lengths: list[int | None] = [None] * rows
        """New tokens of each row that a string has ended; None for the others."""

    def __call__(self, input_ids_BT: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        """Return which rows have ended."""
        self._new += 1
        for row, ids in enumerate(input_ids_BT[:, -min(self._new, self._stop.window) :].tolist()):
            if self.lengths[row] is None and self._stop.completed(ids):
                self.lengths[row] = self._new
        ended = [length is not None for length in self.lengths]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids_BT.device)
