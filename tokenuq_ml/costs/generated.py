"""The prompts that a study's generated evaluations ask, and what their answers cost. Does not import torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenuq_ml.config import DatasetSpec, StudySpec
from tokenuq_ml.costs.dataset_rows import splits_of
from tokenuq_ml.costs.flops import Architecture, Step, flops
from tokenuq_ml.costs.lengths import Lengths, lengths
from tokenuq_ml.costs.memory import GeneratedEvaluation
from tokenuq_ml.costs.table_bytes import TABLE_BYTES


def generated_evaluations(study: StudySpec, datasets: Mapping[str, DatasetSpec]) -> list[GeneratedEvaluation]:
    """Return the study's evaluations that generate answers, with the number and mean length of their prompts.

    Args:
        study: the study.
        datasets: all datasets of the configuration, by name.
    """
    spec, found = study.evaluation, []
    alpaca = spec.alpaca_eval if spec.alpaca_eval and spec.alpaca_eval.judge else None
    for name, one in (("IF-Eval", spec.ifeval), ("GSM8K", spec.gsm8k), ("AlpacaEval", alpaca)):
        if one is None:
            continue
        dataset = datasets[one.dataset]
        splits = [full_lengths(dataset, split, datasets) for split in splits_of(dataset) if split in ("test", "ood")]
        rows = sum(split.rows for split in splits)
        prompt = sum(split.rows * split.prompt for split in splits) / max(rows, 1)
        if name == "GSM8K" and one.num_fewshot:
            shots = datasets[one.fewshot_dataset or one.dataset]
            if "train" in splits_of(shots):
                prompt += one.num_fewshot * full_lengths(shots, "train", datasets).tokens
        found.append(GeneratedEvaluation(name, rows, prompt, one.max_new_tokens))
    return found


def full_lengths(dataset: DatasetSpec, split: str, datasets: Mapping[str, DatasetSpec]) -> Lengths:
    """Return the lengths of a split's texts, which no maximum length cuts."""
    return lengths(dataset, split, float("inf"), {}, datasets)


@dataclass(frozen=True)
class GenerationCost:
    """What it costs one model to answer all prompts of a study's evaluations."""

    tokens: float
    prompt_flop: float
    flop: float
    """FLOPs of the generated tokens."""
    disk: float
    reads: float
    """Bytes of weights that are read: all of them for each token of a batch of answers."""


def generation_cost(
    model: Architecture,
    evaluations: Sequence[GeneratedEvaluation],
    rank: int,
    batch_size: int,
    weight_bytes: float,
) -> GenerationCost:
    """Return the cost of the answers of one model.

    Args:
        model: its sizes.
        evaluations: their prompts.
        rank: of its adapter; 0 without one.
        batch_size: answers that are generated together.
        weight_bytes: bytes of its weights.
    """
    tokens = prompt_flop = flop = reads = 0.0
    for one in evaluations:
        rows, prompt, new = one.prompts, one.prompt_tokens, one.new_tokens
        read = Step(rows * prompt, 0, rows * prompt**2 / 2, lora_rank=rank)
        write = Step(rows * new, rows * new, rows * (new * prompt + new**2 / 2), lora_rank=rank)
        prompt_flop += flops(model, read).forward
        flop += flops(model, write).forward + rows * new * model.head_product
        tokens += rows * (prompt + new)
        reads += math.ceil(rows / batch_size) * new * weight_bytes
    return GenerationCost(tokens, prompt_flop, flop, TABLE_BYTES["answers"] * tokens, reads)
