"""Greedy answers that survive an interruption: each batch is cached as soon as it is generated."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tokenuq_ml.evaluation.answer_cache import AnswerCache, key_of
from tokenuq_ml.evaluation.decode_loop import Prompts
from tokenuq_ml.evaluation.generation import Answer, GreedyDecoding, generate


def resumable_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    decoding: GreedyDecoding,
    cache: AnswerCache,
    progress: Callable[[int], None] = lambda prompts: None,
    deal: Callable[[Answer, Iterable[Prompts]], Iterator[Prompts]] | None = None,
) -> list[list[int]]:
    """Return the answers that `generate` gives; only prompts without an answer in `cache` are generated.

    Equal prompts are answered once. Batches are formed in a fixed order and cached as a whole, so that a resumed run
    generates the same batches as one without interruption.

    Args:
        model: a causal language model, with or without adapter.
        tokenizer: its tokenizer.
        prompts: token ids of each prompt, with the chat template applied; none may be empty.
        decoding: lengths, batches and stop strings.
        cache: answers of the same model under the same decoding.
        progress: receives the number of prompts that got their answers.
        deal: as for `generate`.
    """
    keys = [key_of(ids) for ids in prompts]
    todo = {key: ids for key, ids in zip(keys, prompts, strict=True) if key not in cache}
    names = list(todo)
    progress(len(prompts) - len(todo))

    def finished(answers) -> None:
        cache.put({names[index]: ids for index, ids in answers.items()})
        progress(len(answers))

    generate(model, tokenizer, list(todo.values()), decoding, finished, deal)
    return [cache[key] for key in keys]
