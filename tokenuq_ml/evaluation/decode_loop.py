"""Greedy decoding of a batch with a cache that is written in place, from which ended answers can leave.

Transformers' `generate` copies the cache in each step and computes the rows of ended answers until the last one ends;
its continuous batching (`generate_batch`) is slower than both on a CPU. A model takes this loop only if the logits of
trial prompts are those of `generate`.

Shapes: M rows, T columns, V vocabulary, S steps.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.evaluation.prompt_batches import trial_prompts
from tokenuq_ml.models.fast_decoding import fast_steps
from tokenuq_ml.models.placement import NARROW
from tokenuq_ml.models.row_cache import RowCache, cache_argument
from tokenuq_ml.system_errors import is_system_error

TRIAL_STEPS = 3
"""Tokens of the trial answers: one of the prompt's pass, one of the cache, one after a row has left."""
Prompts = list[list[int]]
"""Token ids of each prompt of a batch, or of each answer."""


class Rows:
    """Rows of a batch that are decoded, one token of each at a time.

    Args:
        model: a causal language model.
        inputs: `input_ids` and `attention_mask` of the prompts, padded on the left.
        cache: an empty one for the model.
    """

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor], cache: RowCache):
        self._model, self._cache, self._mask_MT = model, cache, inputs["attention_mask"]
        names = inspect.signature(model.forward).parameters
        self._cached = {cache_argument(model.forward): cache, "use_cache": True}
        self._takes_positions = "position_ids" in names
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
        self.logits_MV = self._pass(inputs["input_ids"])

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._mask_MT.shape[0]

    def advance(self, tokens_M: Tensor) -> None:
        """Append a token to each row, and compute the logits of the next one."""
        self._mask_MT = torch.cat([self._mask_MT, self._mask_MT.new_ones(len(self), 1)], 1)
        self.logits_MV = self._pass(tokens_M[:, None])

    @property
    def may_leave(self) -> bool:
        """Whether the other rows have the same bits after rows have left.

        On a CPU, PyTorch's attention of a row is rounded in one way by the first thread and in another by the others,
        since it depends on how their buffers are aligned; and products of few rows in float32 are added in another
        order. Answers would depend on when other answers end.
        """
        if self.logits_MV.device.type != "cpu":
            return True
        return self._model.dtype == torch.bfloat16 and torch.get_num_threads() == 1

    def leave(self, places: Sequence[int]) -> list[int]:
        """Let rows leave, in whose places the last rows move; return the earlier place of each row that stays."""
        stay, gone = list(range(len(self))), set(places)
        for place in sorted(gone, reverse=True):
            last = stay.pop()
            if place < len(stay):
                stay[place] = last
                self._cache.replace_row(place, last)
        self._cache.keep_first(len(stay))
        self._mask_MT = self._mask_MT[stay]
        return stay

    def _pass(self, ids_MT: Tensor) -> Tensor:
        """Return the logits of the last column, as float32."""
        inputs = {"input_ids": ids_MT, "attention_mask": self._mask_MT, **self._last_only}
        if self._takes_positions:
            positions_MT = (self._mask_MT.cumsum(-1) - 1).masked_fill_(self._mask_MT == 0, 0)
            inputs["position_ids"] = positions_MT[:, -ids_MT.shape[1] :]
        return self._model(**inputs, **self._cached).logits[:, -1].float()


Start = Callable[[Prompts], Rows]
"""Makes the pass over the prompts of a batch."""


def decode(
    start: Start, prompts: Prompts, ends: set[int], max_new_tokens: int, completed: Callable[[list[int]], bool]
) -> Prompts:
    """Return the greedy answer to each prompt, without the end of turn.

    Args:
        start: from `row_decoding`.
        prompts: of a batch.
        ends: ids that end an answer.
        max_new_tokens: most tokens of an answer.
        completed: whether the last token of an answer completes a string that ends it.
    """
    rows, owners = start(prompts), list(range(len(prompts)))
    answers: Prompts = [[] for _ in prompts]
    going = set(owners)
    while True:
        tokens_M, ended = rows.logits_MV.argmax(-1), []
        for place, token in enumerate(tokens_M.tolist()):
            if (owner := owners[place]) not in going:
                continue
            answer = answers[owner]
            if token not in ends:
                answer.append(token)
            if token in ends or len(answer) == max_new_tokens or completed(answer):
                ended.append(place)
                going.discard(owner)
        if not going:
            return answers
        if ended and rows.may_leave:
            places = rows.leave(ended)
            owners, tokens_M = [owners[place] for place in places], tokens_M[places]
        rows.advance(tokens_M)


@contextmanager
def row_decoding(
    model: PreTrainedModel,
    padded: Callable[[Prompts], dict[str, Tensor]],
    step_logits: Callable[[Prompts, int], Tensor],
) -> Iterator[Start | None]:
    """Yield what starts the rows of prompts; None if the model's answers have to be generated by transformers.

    Args:
        model: a causal language model in eval mode.
        padded: the inputs of prompts, padded on the left.
        step_logits: from prompts and a number of tokens to transformers' logits `[M, S, V]` of their answers.
    """
    with ExitStack() as stack:
        stack.enter_context(fast_steps(model))

        def start(prompts: Prompts) -> Rows:
            cache = RowCache.of(model)
            assert cache is not None
            return Rows(model, padded(prompts), cache)

        if _is_exact(model, start, step_logits):
            yield start
            return
    yield None


@torch.no_grad()
def _is_exact(model: PreTrainedModel, start: Start, step_logits: Callable[[Prompts, int], Tensor]) -> bool:
    """Return whether the loop gives the logits of trial answers, also after a row has left."""
    tolerance = 2e-2 if model.dtype in NARROW else 1e-4
    try:
        if RowCache.of(model) is None:
            return False
        prompts = trial_prompts(model)
        expected_MSV = step_logits(prompts, TRIAL_STEPS)
        rows = start(prompts)
        for step in range(TRIAL_STEPS):
            own_MV = expected_MSV[:, step]
            # `<=`, so that numbers that are not finite do not agree.
            if not bool((rows.logits_MV - own_MV).norm() <= tolerance * own_MV.norm()):
                return False
            tokens_M = own_MV.argmax(-1)
            if step == TRIAL_STEPS - 2:
                places = rows.leave([0])
                expected_MSV, tokens_M = expected_MSV[places], tokens_M[places]
            if step < TRIAL_STEPS - 1:
                rows.advance(tokens_M)
    # What a model with another cache or other arguments raises, in transformers' generation too.
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        if is_system_error(error):
            raise
        return False
    return True
