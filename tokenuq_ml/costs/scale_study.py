"""The study that `tokenuq plan --cluster` plans if none is named, and studies with another number of tokens.

tokenuq plan --cluster nodes=64,gpus=8,card=h100      # 10 B response tokens, a model of 70 B parameters
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tokenuq_ml.config import DatasetSpec, ModelSpec, StudySpec, TrainSpec
from tokenuq_ml.config.load import Config
from tokenuq_ml.costs.flops import PUBLISHED, Architecture
from tokenuq_ml.costs.lengths import ASSUMED_TOKENS, Lengths
from tokenuq_ml.costs.sources import ModelSizes
from tokenuq_ml.errors import InputError

MODEL, RESPONSE_TOKENS = "Llama-3.1-70B", 10e9
ABLATIONS = ("mle", "paper_top25")
"""Plain fine-tuning, and the paper's objective."""
FORMAT = "messages"
"""Whose assumed lengths the examples have."""
HELD_OUT_ROWS = 10_000
MAX_LENGTH, BATCH_SIZE = 1024, 4096
"""3.3 million tokens per step; Llama 3 405B began with 4 million (arXiv:2407.21783, section 3.4.1)."""
SAVE_STEPS = 40
"""Of a study whose steps take minutes: with the default of 50, failures of 64 nodes lose over 1% of the work."""
STUDY, DATASET = "cluster_plan", "responses"


def scale_study(config: Config, response_tokens: float) -> tuple[Config, dict[tuple[str, str], Lengths]]:
    """Return a configuration with the study `STUDY`, and the lengths of its data.

    Args:
        config: has the ablations.
        response_tokens: of the train split.
    """
    prompt, response = ASSUMED_TOKENS[FORMAT]
    tokens, origin = prompt + response, f"assumed for format {FORMAT}: {prompt} + {response} tokens per row"
    rows = {"train": max(1, round(response_tokens / response)), "validation": HELD_OUT_ROWS, "test": HELD_OUT_ROWS}
    dataset = DatasetSpec(name=DATASET, format=FORMAT, path="responses.jsonl", sizes=rows)
    study = StudySpec(
        name=STUDY,
        model="model",
        dataset=DATASET,
        max_length=MAX_LENGTH,
        train=TrainSpec(batch_size=BATCH_SIZE, save_steps=SAVE_STEPS),
        ablations=ABLATIONS,
    )
    made = replace(
        config,
        models={"model": ModelSpec(name="model", source="path", path="model")},
        datasets={DATASET: dataset},
        studies={STUDY: study},
        comparisons={},
    )
    return made, {
        (DATASET, split): Lengths(count, tokens, response, tokens**2, origin) for split, count in rows.items()
    }


def rows_of_tokens(response_tokens: float) -> Callable[[Lengths], int]:
    """Return the function from lengths to the rows that have that many response tokens."""
    return lambda lengths: max(1, round(response_tokens / max(lengths.response, 1e-9)))


def published_sizes(name: str) -> ModelSizes:
    """Return the sizes of a published shape, or of a config.json.

    Raises:
        InputError: there is neither.
    """
    if name in PUBLISHED:
        return ModelSizes(PUBLISHED[name], False, 2, "published")
    if not Path(name).exists():
        raise InputError(f"--model: {name}: is no config.json and not one of {', '.join(PUBLISHED)}")
    return ModelSizes(Architecture.from_config(name), False, 2, name)
