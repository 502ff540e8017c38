"""Datasets that are generated: problems of reasoning-gym, and documents of a synthetic language."""

from tokenuq_ml.config import DatasetSpec, Split
from tokenuq_ml.data.examples import rows_by_split, template_overlap
from tokenuq_ml.data.formats import reasoning_gym
from tokenuq_ml.data.language.documents import figures, generate_documents, language_of
from tokenuq_ml.data.language.grammar import Language
from tokenuq_ml.data.loaded_examples import LoadedExamples
from tokenuq_ml.data.sources.pool import ExamplePool
from tokenuq_ml.data.sources.records import RowLocation
from tokenuq_ml.data.sources.rejected_rows import RejectedRows
from tokenuq_ml.errors import InputError

GENERATED = ("reasoning_gym", "synthetic_language")
"""The formats of these datasets."""


def load_generated(spec: DatasetSpec) -> LoadedExamples:
    """Generate the examples of a dataset.

    Raises:
        InputError: a package is missing, too few examples are distinct, or the entry is a world of another's language.
    """
    if spec.language is not None:
        raise InputError(
            f"dataset {spec.name}: is written in the language of {spec.language}: use load_documents with that language"
        )
    return _problems(spec) if spec.format == "reasoning_gym" else load_documents(spec, language_of(spec))


def why_unavailable(spec: DatasetSpec) -> str | None:
    """Return which package is missing to generate a dataset; None if none is."""
    return reasoning_gym.why_unavailable(spec) if spec.format == "reasoning_gym" else None


def first_conversations(spec: DatasetSpec, split: Split, count: int) -> list[list[dict[str, str]]]:
    """Return `count` conversations of a split; none of a world whose language another entry defines."""
    few = spec.model_copy(update={"sizes": {split: count}})
    if spec.format == "reasoning_gym":
        return [example.messages for example in reasoning_gym.generate_examples(few)[0]]
    if not spec.defines_language:
        return []
    return [example.messages for example in generate_documents(few, language_of(spec))[0]]


def load_documents(spec: DatasetSpec, language: Language) -> LoadedExamples:
    """Generate the documents of an entry of format `synthetic_language`.

    Raises:
        InputError: too few prompts are distinct.
    """
    examples, repeated = generate_documents(spec, language)
    return LoadedExamples(examples, figures(examples, language, repeated), RejectedRows())


def _problems(spec: DatasetSpec) -> LoadedExamples:
    examples, repeated = reasoning_gym.generate_examples(spec)
    pool, rejected = ExamplePool(), RejectedRows()
    for number, example in enumerate(examples):
        pool.add(example, "", str(spec.task), RowLocation(number + 1, None))
    assert spec.sizes != "all"
    drawn = pool.draw(spec, {"": spec.sizes}, f"dataset {spec.name}: task {spec.task!r}", rejected)
    metrics: dict[str, int | str] = {
        **rows_by_split(drawn.examples),
        "duplicate_questions_dropped": repeated,
        **template_overlap(drawn.examples),
    }
    return LoadedExamples(drawn.examples, metrics, rejected)
