"""The prompts that a study's generated evaluations ask, as `tokenuq plan` counts them. Does not import torch."""

from collections.abc import Mapping

from tokenuq_ml.config import DatasetSpec, StudySpec
from tokenuq_ml.costs.dataset_rows import splits_of
from tokenuq_ml.costs.lengths import Lengths, lengths
from tokenuq_ml.costs.memory import GeneratedEvaluation


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
