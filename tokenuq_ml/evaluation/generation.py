"""Greedy answers to prompts, in batches. Runs on the model's device; the caller chooses the precision (autocast).

In a stage of several processes, complete batches are dealt to the ranks, and every rank gets all answers.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.utils import logging

from tokenuq_ml import process_group
from tokenuq_ml.evaluation.decode_loop import Prompts, Start, decode, row_decoding
from tokenuq_ml.evaluation.prompt_batches import STEPS, batches_are_exact, require_generation
from tokenuq_ml.evaluation.stop_strings import RowsEnd, StopStrings
from tokenuq_ml.models.dynamic_rope import forget_lengths, shared_length
from tokenuq_ml.models.fast_decoding import fast_head
from tokenuq_ml.models.positions import require_positions
from tokenuq_ml.models.sharding import is_sharded


@dataclass(frozen=True)
class GreedyDecoding:
    """How answers are generated: always the argmax, up to a length or a stop string."""

    max_new_tokens: int
    """Most tokens per answer."""
    batch_size: int
    """Prompts per batch; batches hold prompts of similar length."""
    stop: Sequence[str] = ()
    """Strings that end an answer. An answer's last token completes the string; `cut` removes it from the text."""


NEVER = 2**31 - 1
"""Id of no token."""
Answer = Callable[[Prompts], Prompts]
"""Returns the answers to a batch of prompts."""


def deal_to_ranks(answer: Answer, batches: Iterable[Prompts], in_step: bool = False) -> Iterator[Prompts]:
    """Yield the answers to each batch, on every rank of the stage, each of which computes its share.

    Args:
        answer: generates the answers to a batch.
        batches: the same on every rank.
        in_step: the ranks share the weights of a model. In a batch, `generate` of transformers lets a rank whose
            answers have ended make passes until all have (`synced_gpus`).
    """
    return process_group.merged(process_group.own_results(answer, batches, in_step))


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    decoding: GreedyDecoding,
    finished: Callable[[Mapping[int, list[int]]], None] = lambda answers: None,
    deal: Callable[[Answer, Iterable[Prompts]], Iterator[Prompts]] | None = None,
) -> list[list[int]]:
    """Return the greedy continuation of each prompt, under the active adapter, with dropout off.

    Each token is the argmax. The sampling, penalties and lengths of the model's own generation config are ignored, so
    that models are compared under the same decoding.

    Args:
        model: a causal language model, with or without adapter.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt, with the chat template applied; none may be empty.
        decoding: lengths, batches and stop strings.
        finished: receives the answers of each batch, index of the prompt -> new ids, as soon as it is generated.
        deal: has batches answered, in order; another process may open an `answer_pass` of its own. Default:
            `deal_to_ranks`.

    Returns:
        The new token ids of each prompt, in order, without the end of turn (any end id of the generation config or the
        tokenizer) and what follows it.

    Raises:
        ValueError: a prompt is empty.
        InputError: a prompt and its longest answer have more tokens than the model has positions, or generation is
            not that of the model's forward pass.
    """
    empty = [index for index, prompt in enumerate(prompts) if not prompt]
    if empty:
        raise ValueError(f"prompt {empty[0]} has no tokens")
    causal_lm = _generating(model)
    deal = deal or partial(deal_to_ranks, in_step=is_sharded(causal_lm))
    answers: list[list[int]] = [[] for _ in prompts]
    # Longest first: a batch that does not fit in memory fails at once.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    if order:
        what = f"prompt {order[0]} with an answer of {decoding.max_new_tokens:,} tokens"
        longest, fields = len(prompts[order[0]]) + decoding.max_new_tokens, causal_lm.config.get_text_config().to_dict()
        require_positions(longest, fields, what, "lower max_new_tokens, or use a model with more positions")
    with answer_pass(model, tokenizer, decoding) as answer, torch.no_grad():
        pad = _pad_id(tokenizer, end_ids(causal_lm, tokenizer))
        if order:
            require_generation(causal_lm, partial(_step_logits, causal_lm, pad))
        batches = list(_batches(causal_lm, order, prompts, decoding, pad))
        texts = ([prompts[index] for index in batch] for batch in batches)
        for batch, found in zip(batches, deal(answer, texts), strict=True):
            new = dict(zip(batch, found, strict=True))
            for index, ids in new.items():
                answers[index] = ids
            finished(new)
    return answers


@contextmanager
def answer_pass(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, decoding: GreedyDecoding
) -> Iterator[Answer]:
    """Yield a function that generates the answers to one batch; the arguments are those of `generate`."""
    causal_lm = _generating(model)
    ends = end_ids(causal_lm, tokenizer)
    pad = _pad_id(tokenizer, ends)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=decoding.max_new_tokens,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad,
    )

    stop = StopStrings(tokenizer, decoding.stop)

    # Without `no_grad`, which `answer` has: the pass may stay open while this process does something else.
    with _quiet(), _evaluating(causal_lm, config), fast_head(causal_lm), _rows(causal_lm, pad) as start:

        @torch.no_grad()
        def answer(batch: Prompts) -> Prompts:
            forget_lengths(causal_lm)
            if start is not None:
                return decode(start, batch, ends, decoding.max_new_tokens, stop.completed)
            return [before_end(new_ids, ends) for new_ids in generate_batch(causal_lm, batch, pad, stop)]

        yield answer


def _rows(causal_lm: PreTrainedModel, pad: int) -> AbstractContextManager[Start | None]:
    """Yield what starts the rows of a batch; None for models that only transformers can generate with."""
    # Ranks that share weights make their passes in step, which `generate` does.
    if is_sharded(causal_lm) or shared_length(causal_lm) is not None:
        return nullcontext()
    return row_decoding(causal_lm, partial(_padded, causal_lm, pad=pad), partial(_step_logits, causal_lm, pad))


def _generating(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """Return the model whose `generate` is called: PEFT puts the adapter's layers into the base model."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _pad_id(tokenizer: PreTrainedTokenizerBase, ends: set[int]) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)


def before_end(new_ids: list[int], ends: set[int]) -> list[int]:
    """Return the ids before the first that ends a turn."""
    return new_ids[: next((place for place, token in enumerate(new_ids) if token in ends), len(new_ids))]


def _batches(
    causal_lm: PreTrainedModel, order: list[int], prompts: list[list[int]], decoding: GreedyDecoding, pad: int
) -> Iterator[list[int]]:
    """Yield the indices of each batch.

    A prompt that may pass the length that texts can share is alone, and so is every prompt of a model whose answers
    depend on the others of a batch.
    """
    shared, start = shared_length(causal_lm), 0
    while start < len(order):
        length = len(prompts[order[start]])
        alone = shared is not None and length + decoding.max_new_tokens > shared
        batch = order[start : start + (1 if alone else decoding.batch_size)]
        if len(batch) > 1 and not batches_are_exact(causal_lm, partial(_step_logits, causal_lm, pad)):
            batch = batch[:1]
        yield batch
        start += len(batch)


def _step_logits(causal_lm: PreTrainedModel, pad: int, prompts: Prompts, steps: int = STEPS) -> torch.Tensor:
    """Return the logits `[B, S, V]` of the first tokens of each answer, generated by transformers."""
    # An end that no token is. `min_new_tokens` would generate another token than the likeliest where that is an end.
    config = GenerationConfig(
        do_sample=False, max_new_tokens=steps, eos_token_id=NEVER, pad_token_id=pad, output_logits=True
    )
    inputs = _padded(causal_lm, prompts, pad)
    out = causal_lm.generate(**inputs, generation_config=config, return_dict_in_generate=True)
    return torch.stack(out.logits, 1)


def generate_batch(causal_lm: PreTrainedModel, prompts: Prompts, pad: int, stop: StopStrings) -> Prompts:
    """Return the new ids of one batch, with ends of turn and padding, but cut after a stop string."""
    longest, criterion = max(map(len, prompts)), RowsEnd(stop, len(prompts))
    criteria = StoppingCriteriaList([criterion] if stop else [])
    output_BT = causal_lm.generate(**_padded(causal_lm, prompts, pad), stopping_criteria=criteria)
    return [new[:length] for new, length in zip(output_BT[:, longest:].tolist(), criterion.lengths, strict=True)]


def _padded(causal_lm: PreTrainedModel, prompts: Prompts, pad: int) -> dict[str, torch.Tensor]:
    """Return the prompts with padding on the left, so that every answer starts in the same column, and their mask.

    The mask follows the lengths, since a prompt may contain the padding id as its end of turn.
    """
    longest, device = max(map(len, prompts)), causal_lm.device
    return {
        "input_ids": torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=device),
        "attention_mask": torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device),
    }


def end_ids(causal_lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids that end an answer: those of the generation config and of the tokenizer."""
    configured = causal_lm.generation_config.eos_token_id
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    return {int(token) for token in (*ids, tokenizer.eos_token_id) if token is not None}


@contextmanager
def _evaluating(causal_lm: PreTrainedModel, generation_config: GenerationConfig) -> Iterator[None]:
    """Turn dropout off, and replace the model's own generation config, whose values `generate` would merge."""
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
    """Silence transformers' advice on generation flags, which it repeats for every batch."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
