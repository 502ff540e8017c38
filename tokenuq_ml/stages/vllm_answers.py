"""Answers of a model under evaluation by vLLM, in the place of its own passes (`evaluation/vllm_engine.py`)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from tokenuq_ml import process_group
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.decode_loop import Prompts
from tokenuq_ml.evaluation.generation import GreedyDecoding, before_end, end_ids
from tokenuq_ml.evaluation.stop_strings import StopStrings
from tokenuq_ml.evaluation.vllm_engine import REMEDY, VllmEngine, adapter_rank, require_greedy, require_vllm
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.stages.candidate import Candidate
from tokenuq_ml.stages.context import StageContext

BATCHES = 16
"""Batches that vLLM gets at a time: it starts a prompt as soon as an answer ends, and a resumed run repeats these."""
CHECKED = 4
"""Answers that are compared with the model's own passes, of the shortest prompts."""


@dataclass
class _Kept:
    """The engine of this process, for the next evaluation."""

    settings: tuple | None = None
    length: int = 0
    engine: VllmEngine | None = None

    def get(self, context: StageContext, rows: int, length: int, rank: int | None) -> VllmEngine:
        """Return an engine for answers of this length, with all settings the same."""
        folder = str(context.input("model"))
        settings = (folder, context.numerics, rows, rank)
        if self.engine is not None and (settings != self.settings or length > self.length):
            self.engine.close()
            self.engine = None
        if self.engine is None:
            self.engine = VllmEngine(folder, context.numerics, rows, length, rank)
            self.settings, self.length = settings, length
        return self.engine


_kept = _Kept()


def require_engine(context: StageContext) -> None:
    """Check that vLLM can answer in this stage.

    Raises:
        InputError: it is missing, the device is another one, or the stage has several processes.
    """
    require_vllm(context.numerics)
    if process_group.world_size() > 1:
        raise InputError(
            "`engine: vllm` answers in a stage of one process, and this one has "
            f"{process_group.world_size()}; set the study's `processes` to 1, or {REMEDY}"
        )


def answers_by_vllm(
    context: StageContext, candidate: Candidate, decoding: GreedyDecoding, batches: Iterable[Prompts]
) -> Iterator[Prompts]:
    """Yield the answers to each batch, in order; the first ones are compared with the model's own passes.

    Raises:
        InputError: vLLM cannot answer here, or computes something else than the model.
    """
    require_engine(context)
    ends, stop = (
        end_ids(causal_lm(candidate.model), candidate.tokenizer),
        StopStrings(candidate.tokenizer, decoding.stop),
    )
    rank, source, checked = None if candidate.adapter is None else adapter_rank(candidate.adapter), iter(batches), False
    while group := list(islice(source, BATCHES)):
        prompts = [ids for batch in group for ids in batch]
        # The first group has the longest prompts.
        length = max(map(len, prompts)) + decoding.max_new_tokens
        engine = _kept.get(context, decoding.batch_size, length, rank)
        found = engine.answers(prompts, decoding, ends, candidate.adapter)
        if not checked:
            shortest = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))[:CHECKED]
            require_greedy(candidate.model, [prompts[index] for index in shortest], [found[i] for i in shortest])
            checked = True
        answers = iter([_cut(ids, ends, stop) for ids in found])
        for batch in group:
            yield list(islice(answers, len(batch)))


def _cut(ids: list[int], ends: set[int], stop: StopStrings) -> list[int]:
    """Return an answer without its end of turn, up to the token that completes a stop string."""
    ids = before_end(ids, ends)
    lengths = range(1, len(ids) + 1) if stop else ()
    return ids[: next((length for length in lengths if stop.completed(ids[:length])), len(ids))]
