"""The micro-batches of an optimiser step, found again by the inputs that they were made of.

The step's tokens are counted and selected before its first forward pass. What a subclass changes in the inputs after
that would have no effect, so it is refused.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenuq_ml.errors import InputError
from tokenuq_ml.training.decisions import MicroBatch
from tokenuq_ml.training.token_batch import TokenBatch
from tokenuq_ml.transfers import HostCopy

Values = dict[str, tuple[Any, int | None]]
"""Name of an input -> itself, and for a tensor how often it was changed in place."""


class StepBatches:
    """The micro-batches of an optimiser step.

    Args:
        samples: the inputs of each, on the training device.
        make: makes a micro-batch of its inputs; may change them.
        prefetch: is told of each batch before its pass, and of the batch after it.
    """

    def __init__(
        self,
        samples: Sequence[Mapping[str, Any]] = (),
        make: Callable[[Any], MicroBatch] | None = None,
        prefetch: Callable[[TokenBatch], None] | None = None,
    ):
        self.micro_batches = [make(inputs) for inputs in samples] if make else []
        self.tokens: Tensor | None = None
        """The response tokens of all ranks, at least 1; None until they are counted."""
        self._counted: HostCopy | None = None
        self.is_decided = False
        """Whether the tokens of all micro-batches were selected together."""
        self._prefetch = prefetch
        self._made_of = [dict(_values(inputs)) for inputs in samples]

    def count(self, over_ranks: Callable[[Tensor], Tensor], device: str | torch.device) -> Tensor:
        """Count the response tokens of all ranks, and return them on the device.

        Args:
            over_ranks: gathers a number from the ranks.
            device: of the training.
        """
        own = sum(micro_batch.batch.tokens for micro_batch in self.micro_batches)
        # Filled on the device: a copy would wait for it. A step without any token has the loss 0, not 0 / 0.
        self.tokens = over_ranks(torch.full((), own, device=device)).sum().clamp(min=1)
        self._counted = HostCopy(self.tokens)
        return self.tokens

    @property
    def tokens_on_host(self) -> int:
        """The same number on the host; copied before the step's first pass, after which nobody waits for it."""
        assert self._counted is not None, "the tokens are not counted"
        return int(self._counted.wait()[0].tolist())

    def __iter__(self) -> Iterator[MicroBatch]:
        return iter(self.micro_batches)

    def __len__(self) -> int:
        return len(self.micro_batches)

    def of(self, inputs: Mapping[str, Any]) -> MicroBatch:
        """Return the micro-batch that was made of `inputs`. It may be asked for again, as adversarial training does.

        Raises:
            InputError: there is none, because a subclass changed the inputs, or because no training runs.
        """
        if not self.micro_batches:
            raise InputError(
                "compute_loss was called outside train(), where no optimiser batch is known; call train(), or put the "
                "model in eval mode for the Trainer's own loss"
            )
        values = dict(_values(inputs))
        changed = [_changed(values, made_of) for made_of in self._made_of]
        for number, names in enumerate(changed):
            if not names:
                self._prefetch_from(number)
                return self.micro_batches[number]
        raise InputError(
            f"{', '.join(min(changed, key=len))}: changed after the tokens of the optimiser batch were counted and "
            "selected (in training_step, compute_loss or _prepare_inputs of a subclass), so the change would have no "
            "effect; make it in `token_batch` or in the data collator"
        )

    def _prefetch_from(self, number: int) -> None:
        for micro_batch in self.micro_batches[number : number + 2]:
            # A pass for the losses may have asked for its teacher already.
            if self._prefetch is not None and micro_batch.teacher is None:
                self._prefetch(micro_batch.batch)


def _values(value: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, int | None]]]:
    """Yield the values of nested inputs. Their containers do not count: Trainer makes new ones for each step."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _values(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _values(item, f"{name}[{number}]")
    else:
        counts_changes = isinstance(value, Tensor) and not value.is_inference()
        yield name, (value, value._version if counts_changes else None)


def _changed(values: Values, made_of: Values) -> list[str]:
    """Return the names of the inputs that were replaced, changed in place, added or removed."""
    absent = (None, -1)
    pairs = {name: (values.get(name, absent), made_of.get(name, absent)) for name in (*made_of, *values)}
    return [name for name, (now, before) in pairs.items() if now[0] is not before[0] or now[1] != before[1]]
