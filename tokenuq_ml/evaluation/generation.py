"""Greedy answers to prompts, batched.

Knows token ids and the strings that end an answer: neither what the prompts ask nor how answers are judged.
Devices follow the model; precision is the caller's (autocast), as in scoring.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import logging


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str] = (),
    finished: Callable[[Mapping[int, list[int]]], None] = lambda answers: None,
) -> list[list[int]]:
    """The model's likeliest continuation of each prompt, token by token, under its active adapter, dropout off.

    Always the argmax: the sampling, penalties and lengths of the model's own generation
    config are set aside, so that models are compared by one decoding.

    Args:
        prompts: token ids of each prompt, chat template applied; no prompt may be empty.
        max_new_tokens: at most so many tokens an answer.
        batch_size: prompts a batch; batches hold prompts of like length.
        stop: texts that end an answer; the token that completes one is its last (`cut` takes them off the text).
        finished: told of each batch's answers, index of the prompt -> new ids, as soon as it is done.

    Returns:
        For each prompt, in order, the new token ids before the first end of turn (any of the
        generation config's and the tokenizer's), which is itself left out.

    Raises:
        ValueError: a prompt is empty.
    """
    empty = [index for index, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens")
    # The adapter's layers sit inside the base model: its own `generate` runs with them,
    # and need not be told of the wrapper.
    causal_lm = model.get_base_model() if isinstance(model, PeftModel) else model
    ends = _end_ids(causal_lm, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    greedy = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )
    answers: list[list[int]] = [[] for _ in prompts]
    # Longest first: a batch that does not fit in memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    with _quiet(), _evaluating(causal_lm, greedy), torch.no_grad():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            stops = _StopStrings(tokenizer, stop, len(batch)) if stop else None
            for index, new_ids in zip(
                batch, _continue(causal_lm, [prompts[i] for i in batch], pad, stops), strict=True
            ):
                end = next((place for place, token in enumerate(new_ids) if token in ends), len(new_ids))
                answers[index] = new_ids[:end]
            finished({index: answers[index] for index in batch})
    return answers


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the strings that end it."""
    for string in stop:
        text = text.split(string, 1)[0]
    return text


class _StopStrings(StoppingCriteria):
    """Ends each row of a batch with the token that completes one of the strings."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], rows: int):
        self.tokenizer, self.strings = tokenizer, strings
        self.lengths: list[int | None] = [None] * rows
        """New tokens of each row that has ended so."""
        # A token holds at least one byte; one more, since the window's first may be cut off from its character.
        self._window = 1 + max(len(string.encode()) for string in strings)
        self._new = 0

    def __call__(self, input_ids_BT: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        self._new += 1
        tails = input_ids_BT[:, -min(self._new, self._window) :].tolist()
        for row, tail in enumerate(tails):
            if self.lengths[row] is None:
                text = self.tokenizer.decode(tail)
                if any(string in text for string in self.strings):
                    self.lengths[row] = self._new
        ended = [length is not None for length in self.lengths]
        return torch.tensor(ended, dtype=torch.bool, device=input_ids_BT.device)


def _continue(
    causal_lm: PreTrainedModel, prompts: list[list[int]], pad: int, stops: _StopStrings | None
) -> list[list[int]]:
    """The new ids of one batch, ends of turn and the padding after them included; what a stop string ends is cut."""
    longest = max(map(len, prompts))
    # Left padding: every answer starts at one column. The mask goes by length, since pad
    # may be the very id of the end of turn that a prompt holds.
    input_ids_BT = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=causal_lm.device)
    mask_BT = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=causal_lm.device)
    criteria = StoppingCriteriaList([stops] if stops else [])
    output_BT = causal_lm.generate(input_ids=input_ids_BT, attention_mask=mask_BT, stopping_criteria=criteria)
    lengths = stops.lengths if stops else [None] * len(prompts)
    return [new[:length] for new, length in zip(output_BT[:, longest:].tolist(), lengths, strict=True)]


def _end_ids(causal_lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = causal_lm.generation_config.eos_token_id
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    return {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}


@contextmanager
def _evaluating(causal_lm: PreTrainedModel, generation_config: GenerationConfig) -> Iterator[None]:
    """Dropout off and `generation_config` in place of the model's own, whose set values would be merged in."""
    modes = {module: module.training for module in causal_lm.modules()}
    own = causal_lm.generation_config
    causal_lm.eval()
    causal_lm.generation_config = generation_config
    try:
        yield
    finally:
        causal_lm.generation_config = own
        for module, training in modes.items():
            module.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' advice on generation flags, which would come again with every batch."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
