"""Format `reasoning_gym`: problems made on the spot by the reasoning-gym package, with worked answers.

The same seed gives the same problems on any machine.
"""

import importlib.util

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.examples import Example, example_id
from tokenuq_ml.errors import InputError

OVERSAMPLING = 4
"""Problems drawn for each that is wanted, before giving up on finding enough distinct ones."""


def problem(spec: DatasetSpec) -> str | None:
    """Why there can be no problems; None where the package is there."""
    if importlib.util.find_spec("reasoning_gym"):
        return None
    return f"dataset {spec.name}: reasoning-gym is not installed; pip install 'tokenuq[quickstart]'"


def problems(spec: DatasetSpec) -> tuple[list[Example], int]:
    """As many problems as `sizes` asks for, and how many more repeated a question on the way.

    The answer is the worked one where the task has it. Fewer only where distinct ones run out.

    Raises:
        InputError: the package or the task is missing, or has no written answers.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise InputError(problem(spec)) from None
    wanted = sum(spec.sizes.values())
    try:
        made = reasoning_gym.create_dataset(spec.task, size=OVERSAMPLING * wanted, seed=spec.seed)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"dataset {spec.name}: task {spec.task!r}: {str(error) or 'needs settings of its own'}; "
            "name another `task:` in datasets.yaml"
        ) from None
    # gsm_symbolic draws a numbered generator for each problem: that number is the question's template.
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
                f"dataset {spec.name}: task {spec.task!r} has problems with no written answer; "
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
