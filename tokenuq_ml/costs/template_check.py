"""Whether a model's chat template renders a study's rows: the checks of `tokenized_dataset`, before anything is run.

Reads the tokenizer of a model folder and the first rows of each dataset. Loads no weights, and no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenuq_ml.config import ModelSpec, StudySpec
from tokenuq_ml.data.chat_template import default_template, name_template
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.template_probe import probe_template
from tokenuq_ml.data.tokenization import ConversationTokenizer, describe
from tokenuq_ml.data.tokenizer_files import load_tokenizer
from tokenuq_ml.errors import InputError

CHECKED_ROWS = 200
"""First rows of a dataset that are tokenised."""


def tokenizer_folder(spec: ModelSpec, converted: Path) -> Path | None:
    """Return the folder with the model's tokenizer: the converted model's or the source's; None if neither is there."""
    folders = [converted, *([Path(spec.path)] if spec.source == "path" and spec.path else [])]
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)


def template_findings(
    study: StudySpec,
    model: ModelSpec,
    folder: Path,
    examples: Mapping[str, Sequence[Example]],
    asked: Mapping[str, Sequence[Example]] | None = None,
) -> Iterator[str]:
    """Yield what the chat template makes of probe conversations and of the first examples of each dataset.

    Args:
        study: whose keys decide about examples.
        model: the study's model.
        folder: with its tokenizer.
        examples: dataset -> its first examples.
        asked: the same of the datasets whose questions are answered in evaluations.
    """
    tokenizer = load_tokenizer(folder)
    if model.chat_template is not None:
        tokenizer.chat_template = model.template_text
        name_template(tokenizer, model.chat_template)
    elif not tokenizer.chat_template:
        tokenizer.chat_template = default_template()
    try:
        yield from (f"{model.name}: {note}" for note in probe_template(tokenizer).notes)
    except InputError as error:
        yield f"{model.name}: rejected: {error}"
        return
    conversations = ConversationTokenizer(tokenizer, study.special_tokens_in_text)
    for name, rows in (asked or {}).items():
        yield from _prompt_findings(name, rows, conversations, study.template_drops == "allow")
    for name, rows in examples.items():
        tokens = conversations.tokenize(rows)
        faults = [(row, each.faults[0]) for row, each in zip(rows, tokens, strict=True) if each.faults]
        if faults:
            row, fault = faults[0]
            yield (
                f"{name}: {len(faults)} of its first {len(rows)} examples are not rendered as their rows say; the "
                f"first: {row.id}: {describe(fault)} (template_drops: {study.template_drops})"
            )
        losing = sum(each.needed > study.max_length for each in tokens)
        if name == study.dataset and losing > study.max_truncated_share * len(rows):
            yield (
                f"{name}: {losing} of its first {len(rows)} examples lose response tokens at max_length "
                f"{study.max_length}, more than max_truncated_share {study.max_truncated_share:g}"
            )


def _prompt_findings(
    name: str, rows: Sequence[Example], conversations: ConversationTokenizer, allow_drops: bool
) -> Iterator[str]:
    """Yield why an evaluation fails at the first prompt of a dataset that the chat template does not render."""
    for row in rows:
        try:
            conversations.prompt_of(row, allow_drops)
        except InputError as error:
            yield f"{name}: evaluations cannot ask its questions: example {row.id}: {error}"
            return
