"""Documents of a synthetic language, as examples. Does not import torch."""

from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.config.language import World
from tokenuq_ml.data.examples import Example, example_id, rows_by_split
from tokenuq_ml.data.language.grammar import Form, Item, Language
from tokenuq_ml.errors import InputError
from tokenuq_ml.seeding import language_generator
from tokenuq_ml.tables.parquet import stream_table

GENERATOR = "synthetic_language"
"""Value of `generator` in an example's `source`."""
_TRIES = 1000
"""Documents drawn for one that has a new prompt."""


class Document(NamedTuple):
    """A document as its `source` records it: what it asks for, in which language."""

    language: dict[str, Any]
    """`Language.fields`."""
    form: Form
    items: tuple[Item, ...]

    @classmethod
    def of(cls, example: Example) -> "Document | None":
        """Return the document of an example, also of one that a mix or a review took over; None if it is none."""
        source = example.source
        if source.get("generator") != GENERATOR:
            return None
        items = tuple(Item(slot, tuple(arguments)) for slot, *arguments in source["items"])
        return cls(source["language"], Form(source["world"], source["shuffled"]), items)


def language_of(spec: DatasetSpec) -> Language:
    """Return the language that an entry of `datasets.yaml` defines."""
    assert spec.grammar is not None
    return Language(spec.grammar, spec.seed)


def read_language(name: str, table: str | Path) -> Language:
    """Return the language in which the examples of a dataset are written.

    Args:
        name: the dataset.
        table: the folder of its table `examples`.

    Raises:
        InputError: the examples are not documents of a language.
    """
    rows = next(stream_table(table, ["example_id", "split", "messages", "source"], count=1)).to_pylist()
    document = Document.of(Example.from_row(rows[0]))
    if document is None:
        raise InputError(
            f"dataset {name}: its examples are not of a synthetic language; materialise datasets/{name} again"
        )
    return Language.from_fields(document.language)


def generate_documents(spec: DatasetSpec, language: Language) -> tuple[list[Example], int]:
    """Return the documents that `sizes` asks for, and how many drawn ones repeated a prompt.

    Documents of a language's own entry are of the world `pre`. Of its train split, which is for pre-training, a share
    has the form of the world `post` with shuffled facts and choices.

    Args:
        spec: the dataset, whose `changes` of the language are made, and recorded in the `source` of each example.
        language: as its entry defines it.

    Raises:
        InputError: too few prompts are distinct.
    """
    assert spec.sizes != "all"
    language = language.changed(spec.changes)
    seen: set[str] = set()
    examples: list[Example] = []
    repeated = 0
    for split, size in spec.sizes.items():
        draw = language_generator(spec.seed, f"{spec.world or 'pre'} {split}")
        for _ in range(int(size)):
            form = _form(spec, language, split, draw)
            items, tries = _new_items(spec, language, form, draw, seen)
            repeated += tries
            identity = example_id(spec.name, len(examples))
            examples.append(_example(identity, split, language, form, items, draw))
    return examples, repeated


def figures(examples: list[Example], language: Language, repeated: int) -> dict[str, int | str]:
    """Return what the dataset's asset shows of its documents."""
    return {
        **rows_by_split(examples),
        "duplicate_questions_dropped": repeated,
        "words": len(language.words.vocabulary),
        "shuffled_documents": sum(bool(example.source["shuffled"]) for example in examples),
    }


def _form(spec: DatasetSpec, language: Language, split: str, draw: Random) -> Form:
    if spec.language is not None:
        world: World = spec.world or "post"
        return Form(world)
    shuffled = split == "train" and draw.random() < language.grammar.shuffled
    return Form("post", shuffled=True) if shuffled else Form("pre")


def _new_items(
    spec: DatasetSpec, language: Language, form: Form, draw: Random, seen: set[str]
) -> tuple[tuple[Item, ...], int]:
    """Return items whose prompt is new, and the number of tries that were not."""
    for tries in range(_TRIES):
        items = language.draw_items(form, draw)
        prompt = language.prompt(form, items)
        if prompt not in seen:
            seen.add(prompt)
            return items, tries
    raise InputError(
        f"dataset {spec.name}: of {_TRIES:,} prompts in a row none was new after {len(seen):,} documents; lower "
        "`sizes`, or raise `items` or `facts` of the language in datasets.yaml"
    )


def _example(
    identity: str, split: Any, language: Language, form: Form, items: tuple[Item, ...], draw: Random
) -> Example:
    words = [slot.draw(draw) for slot in language.slots(form, items)]
    source = {
        "generator": GENERATOR,
        "language": language.fields,
        "world": form.world,
        "shuffled": form.shuffled,
        "items": [[item.slot, *item.arguments] for item in items],
    }
    # The last word is the end of the turn, which the chat template writes.
    messages = [
        {"role": "user", "content": language.prompt(form, items)},
        {"role": "assistant", "content": " ".join(words[:-1])},
    ]
    return Example(identity, split, messages, source)
