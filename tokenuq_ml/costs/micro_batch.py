"""The largest micro-batch of a study's trainings that fits a device, and what to set if none does."""

from dataclasses import dataclass

from tokenuq_ml.config import StudySpec
from tokenuq_ml.costs.layout import ON_HOST, with_examples
from tokenuq_ml.costs.machine import USABLE_MEMORY
from tokenuq_ml.costs.memory import PeakMemory


@dataclass(frozen=True)
class MicroBatch:
    """The examples of a forward pass that fit."""

    examples: int
    """The most that fit and divide the batch, with every text as long as the study allows; 0: not even one fits."""
    asked: int
    """As the study says."""
    needed: float
    """Bytes on the device with `examples`, or with one if none fits."""
    usable: float
    """Bytes that the device has for them."""
    remedies: tuple[str, ...] = ()
    """Settings under which at least one fits, each with those before it; empty if one fits, or if none helps."""


def largest_micro_batch(peak: PeakMemory, rank: int) -> MicroBatch | None:
    """Return the largest micro-batch that fits; None if the sizes of the model or of the memory are not known.

    Args:
        peak: of the study on the machine.
        rank: the largest rank of the study's adapters.
    """
    if peak.model is None or peak.machine is None or peak.machine.memory is None:
        return None
    train, usable = peak.study.train, USABLE_MEMORY * peak.machine.memory
    asked = train.micro_batch_size or train.batch_size
    sizes = [size for size in range(train.batch_size, 0, -1) if train.batch_size % size == 0]
    for size in sizes:
        needed = _on_device(peak, size, rank)
        if needed <= usable:
            return MicroBatch(size, asked, needed, usable)
    return MicroBatch(0, asked, _on_device(peak, 1, rank), usable, _remedies(peak, rank, usable))


def _on_device(peak: PeakMemory, examples: int, rank: int) -> float:
    parts, is_host = with_examples(peak, examples).training(rank), peak.machine.device == "cpu"
    return sum(size for part, size in parts.items() if is_host or part != ON_HOST)


def _remedies(peak: PeakMemory, rank: int, usable: float) -> tuple[str, ...]:
    """Return the first settings, of those that need less memory, which together let one example fit."""
    study, said = peak.study, []
    for text, changed in _frugal(study):
        said.append(text)
        study = changed(study)
        if _on_device(PeakMemory(peak.model, study, peak.machine), 1, rank) <= usable:
            return tuple(said)
    return ()


def _frugal(study: StudySpec):
    """Yield settings that need less memory and that the study does not have, the cheapest in time first."""

    def train(**keys):
        return lambda one: one.model_copy(update={"train": one.train.model_copy(update=keys)})

    if not study.train.gradient_checkpointing:
        yield "train.gradient_checkpointing: true", train(gradient_checkpointing=True)
    if "8bit" not in study.train.optimizer and "paged" not in study.train.optimizer:
        yield "train.optimizer: adamw_8bit", train(optimizer="adamw_8bit")
    if study.train.adapter == "none":
        yield "train.adapter: lora", train(adapter="lora")
    if study.quantization != "nf4":
        yield "quantization: nf4", lambda one: one.model_copy(update={"quantization": "nf4"})
