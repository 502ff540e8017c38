"""Greedy answers that survive an interruption: each batch is cached as soon as it is generated."""

from collections.abc import Callable, Sequence

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.evaluation.answer_cache import AnswerCache, key_of
from tokenuq_ml.evaluation.generation import generate


def resumable_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    cache: AnswerCache,
    *,
    max_new_tokens: int,
    batch_size: int,
    stop: Sequence[str] = (),
    progress: Callable[[int], None] = lambda prompts: None,
) -> list[list[int]]:
    """Return the answers that `generate` gives; only prompts without an answer in `cache` are generated.

    Equal prompts are answered once. Batches are formed in a fixed order and cached as a whole, so that a resumed run
    generates the same batches as one without interruption.

    Args:
        model: see `generate`, as for the arguments without description here.
        tokenizer: see `generate`.
        prompts: token ids of each prompt.
        cache: answers of the same model with the same settings.
        max_new_tokens: see `generate`.
        batch_size: see `generate`.
        stop: see `generate`.
        progress: receives the number of prompts that got their answers.
    """
    keys = [key_of(ids) for ids in prompts]
    todo = {key: ids for key, ids in zip(keys, prompts, strict=True) if key not in cache}
    names = list(todo)
    progress(len(prompts) - len(todo))

    def finished(answers) -> None:
        cache.put({names[index]: ids for index, ids in answers.items()})
        progress(len(answers))

    generate(
        model,
        tokenizer,
        list(todo.values()),
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        stop=stop,
        finished=finished,
    )
    return [cache[key] for key in keys]
