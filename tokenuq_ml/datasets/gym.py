"""Format `reasoning_gym`: problems made on the spot by the reasoning-gym package, with worked answers.

The same seed gives the same problems on any machine.
"""

from tokenuq_ml.datasets import Example, LoadedExamples, draw_splits, example_id
from tokenuq_ml.errors import InputError
from tokenuq_ml.specs import DatasetSpec

OVERSAMPLING = 4
"""Problems drawn for each that is wanted, before giving up on finding enough distinct ones."""


def load(spec: DatasetSpec) -> LoadedExamples:
    """Distinct questions only; the answer is the worked one where the task has it.

    Raises:
        InputError: the package or the task is missing, or there are too few distinct problems.
    """
    try:
        import reasoning_gym
    except ImportError:
        raise InputError(
            f"dataset {spec.name}: reasoning-gym is not installed; pip install 'tokenuq[quickstart]'"
        ) from None
    wanted = sum(spec.sizes.values())
    try:
        problems = reasoning_gym.create_dataset(spec.task, size=OVERSAMPLING * wanted, seed=spec.seed)
    except (ValueError, AssertionError) as error:
        raise InputError(
            f"dataset {spec.name}: task {spec.task!r}: {str(error) or 'needs settings of its own'}; "
            "name another `task:` in datasets.yaml"
        ) from None
    # gsm_symbolic draws a numbered generator for each problem: that number is the question's template.
    templates = problems.task_indices if spec.task == "gsm_symbolic" else None
    found: dict[str, Example] = {}
    duplicates = 0
    for number in range(len(problems)):
        if len(found) == wanted:
            break
        problem = problems[number]
        answer = problem["metadata"].get("answer_cot") or problem["answer"]
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
            [{"role": "user", "content": problem["question"]}, {"role": "assistant", "content": str(answer)}],
            source,
        )
        duplicates += example.question in found
        found.setdefault(example.question, example)
    drawn = draw_splits(spec, list(found.values()), f"dataset {spec.name}: task {spec.task!r}")
    return LoadedExamples(drawn.examples, duplicates)
