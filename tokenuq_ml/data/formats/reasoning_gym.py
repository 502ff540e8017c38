"""Format `reasoning_gym`: problems that the reasoning-gym package generates, with worked answers.

The same seed gives the same problems on every machine.
"""

import importlib.util

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.split_sizes import are_counts
from tokenuq_ml.data.examples import Example, example_id
from tokenuq_ml.errors import InputError

OVERSAMPLING = 4
"""Problems generated per example, to find enough distinct ones."""


def why_unavailable(spec: DatasetSpec) -> str | None:
    """Return what to install to generate problems; None if the package is installed."""
    if importlib.util.find_spec("reasoning_gym"):
        return None
    return f"dataset {spec.name}: reasoning-gym is not installed; pip install 'tokenuq[quickstart]'"


def generate_examples(spec: DatasetSpec) -> tuple[list[Example], int]:
    """Return as many examples as `sizes` asks for, and the number of generated problems that repeated a question.

    An answer is the worked one if the task has it. There are fewer examples only if too few problems are distinct.

    Raises:
        InputError: the package or the task is missing, or the task has no written answers.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise InputError(why_unavailable(spec)) from None
    assert spec.sizes != "all" and are_counts(spec.sizes)
    wanted = int(sum(spec.sizes.values()))
    try:
        made = reasoning_gym.create_dataset(spec.task, size=OVERSAMPLING * wanted, seed=spec.seed)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"dataset {spec.name}: task {spec.task!r}: {str(error) or 'needs settings that cannot be given'}; "
            "name another `task:` in datasets.yaml"
        ) from None
    # gsm_symbolic draws a numbered generator for each problem; the number identifies the question's template.
    templates = made.task_indices if spec.task == "gsm_symbolic" else None
    found: dict[str, Example] = {}
    repeated = 0
    for number in range(len(made)):
        if len(found) == wanted:
            break
        one = made[number]
        answer = one["metadata"].get("answer_cot") or one["answer"]
        if answer is None or not str(answer).strip():
            raise InputError(
                f"dataset {spec.name}: task {spec.task!r} has problems without a written answer; "
                "name another `task:` in datasets.yaml"
            )
        source = {
            "generator": f"reasoning_gym/{spec.task}",
            "seed": spec.seed,
            "number": number,
            "template": None if templates is None else int(templates[number]),
        }
        example = Example(
            example_id(spec.name, number),
            "",
            [{"role": "user", "content": one["question"]}, {"role": "assistant", "content": str(answer)}],
            source,
        )
        repeated += example.question in found
        found.setdefault(example.question, example)
    return list(found.values()), repeated
