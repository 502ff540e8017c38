"""Greedy answers that outlive an interruption: each batch is cache as soon as it is generated.

Joins `generation.py` and `cache.py`. Knows token ids; neither what is asked nor how answers are judged.
"""

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
    """As `generate`, but for the prompts whose answers are in `cache` already; equal prompts are answered once.

    Batches are formed in one order and cache whole, so that going on makes the very batches that a run
    without interruption would have made. `cache` must be of this very model and these settings.
    `progress` is told how many prompts have their answers.
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
