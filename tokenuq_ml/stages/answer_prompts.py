"""Generated answers of a model under evaluation: resumable, and cut where a prompt exceeds the model's context."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import polars as pl
from transformers import PreTrainedTokenizerBase

from tokenuq_ml.config.evaluation import AnswerSpec
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.answer_cache import AnswerCache
from tokenuq_ml.evaluation.answers import resumable_answers
from tokenuq_ml.evaluation.decode_loop import Prompts
from tokenuq_ml.evaluation.generation import Answer, GreedyDecoding, deal_to_ranks
from tokenuq_ml.evaluation.stop_strings import cut
from tokenuq_ml.models.adapters import adapter_digest
from tokenuq_ml.models.sharding import is_sharded
from tokenuq_ml.progress import Progress
from tokenuq_ml.stages import batch_actors
from tokenuq_ml.stages.batch_work import Job
from tokenuq_ml.stages.candidate import HELD_OUT, Candidate
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.measures import AnswerMeasure
from tokenuq_ml.stages.request import StageRequest
from tokenuq_ml.stages.train_adapter import model_digest
from tokenuq_ml.stages.vllm_answers import answers_by_vllm
from tokenuq_ml.tables.parquet import read_table


def answers_dir(request: StageRequest) -> Path:
    """Return the folder of the caches of answers and verdicts."""
    return Path(request.work_dir, "answers")


def held_out_rows(context: StageContext, dataset: str) -> pl.DataFrame:
    """Return the rows of a dataset's table `examples` that are evaluated on."""
    examples = read_table(context.input(f"examples/{dataset}"))
    return examples.filter(pl.col("split").is_in(HELD_OUT))


def held_out(context: StageContext, dataset: str) -> list[Example]:
    """Return the same rows as examples, with everything that their chat template reads."""
    return [Example.from_row(row) for row in held_out_rows(context, dataset).iter_rows(named=True)]


class PromptEncoder:
    """Token ids of the prompts of evaluation examples, rendered and encoded as their rows are for training.

    Args:
        context: of the evaluation; its fields have the study's keys about chat templates.
        tokenizer: of the model.
    """

    def __init__(self, context: StageContext, tokenizer: PreTrainedTokenizerBase):
        fields = context.asset.fields
        self._conversations = ConversationTokenizer(tokenizer, fields.get("special_tokens_in_text", "encode"))
        self._allow_drops = fields.get("template_drops") == "allow"

    def ids(self, example: Example) -> list[int]:
        """Return the ids from which the last answer of an example is generated.

        Raises:
            InputError: the chat template rejects the conversation, or leaves out a part of it.
        """
        try:
            return self._conversations.prompt_of(example, self._allow_drops)
        except InputError as error:
            raise InputError(f"example {example.id}: {error}") from None


def answer_prompts(
    context: StageContext,
    candidate: Candidate,
    what: str,
    prompts: Sequence[list[int]],
    spec: AnswerSpec,
    stop: Sequence[str] = (),
) -> tuple[list[str], pl.Series]:
    """Return the model's text for each prompt, and the number of its tokens.

    Args:
        context: of the evaluation.
        candidate: the model that answers.
        what: name of the evaluation in progress lines.
        prompts: token ids of each prompt.
        spec: length of answers and size of batches.
        stop: strings that end an answer; they are cut off.
    """
    decoding = GreedyDecoding(spec.max_new_tokens, spec.batch_size, list(stop))
    cache = AnswerCache(
        answers_dir(context.request),
        model=model_digest(context.input("model")),
        adapter=None if candidate.adapter is None else adapter_digest(candidate.adapter),
        numerics=context.numerics.fields(),
        code=context.asset.code_version,
        **asdict(decoding),
    )
    # Base and adapter have one dtype, so inference runs without autocast and its cost per product.
    answers = resumable_answers(
        candidate.model,
        candidate.tokenizer,
        _fitting_prompts(context, candidate, what, prompts, spec),
        decoding,
        cache,
        progress=Progress(context.reporter, f"{candidate.name} {what}", len(prompts), "prompts").add,
        deal=partial(_deal, context, candidate, decoding, spec.engine),
    )
    texts = [cut(candidate.tokenizer.decode(ids, skip_special_tokens=True), stop) for ids in answers]
    return texts, pl.Series([len(ids) for ids in answers], dtype=pl.Int32)


def _deal(
    context: StageContext,
    candidate: Candidate,
    decoding: GreedyDecoding,
    engine: str,
    answer: Answer,
    batches: Iterable[Prompts],
) -> Iterator[Prompts]:
    """Yield the answers to each batch: of vLLM, of this stage's ranks, or of the processes of a cluster."""
    if engine == "vllm":
        yield from answers_by_vllm(context, candidate, decoding, batches)
        return
    actors = batch_actors.current()
    if actors is None or candidate.stored is None:
        yield from deal_to_ranks(answer, batches, in_step=is_sharded(candidate.model))
        return
    measure = AnswerMeasure(candidate.stored, decoding)
    for answers in actors.run([Job([batch], measure) for batch in batches], context.numerics):
        yield from answers


def _fitting_prompts(
    context: StageContext, candidate: Candidate, what: str, prompts: Sequence[list[int]], spec: AnswerSpec
) -> list[list[int]]:
    """Return the prompts cut to the model's context: a prompt that is too long loses its beginning, as in lm-eval."""
    length = getattr(candidate.model.config.get_text_config(), "max_position_embeddings", None)
    room = None if length is None else length - spec.max_new_tokens
    if room is None or all(len(ids) <= room for ids in prompts):
        return list(prompts)
    too_long = sum(len(ids) > room for ids in prompts)
    context.reporter.warning(
        f"{candidate.name}: {what}: {too_long} of {len(prompts)} prompts lose their beginning: the model's context has "
        f"{length} tokens, of which {spec.max_new_tokens} are for the answer and {room} for the prompt"
    )
    return [ids[-max(room, 1) :] for ids in prompts]
