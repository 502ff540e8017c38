"""Texts that belong to no study, read and tokenised as the stages do it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.guessed_format import guess_format
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.raw_text import divide
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.models.positions import require_positions
from tokenuq_ml.reports.explorer_examples import prompt_of
from tokenuq_ml.stages.token_rows import DatasetTokens, TokenizationRules, require_embeddings

REMEDY = (
    "Write a template that renders them to a file, name it as `chat_template:` of an entry of models.yaml, and give "
    "that entry's name as --model"
)
NO_TEXT = "no text has a token to score: a text needs at least two tokens, a conversation an answer"


def read_texts(
    keys: Mapping[str, Any], given: str, limit: int | None, scratch: str | Path
) -> tuple[list[Example], str, list[str]]:
    """Read the rows of a source.

    Args:
        keys: of a dataset's entry; without `format`, it is guessed.
        given: how the user named the source.
        limit: read only that many rows, the first ones; None: all.
        scratch: folder of temporary files.

    Returns:
        The examples in their order, their format, and sentences about what a user should know.

    Raises:
        InputError: the source cannot be read, or has other rows than its format says.
    """
    form = keys.get("format") or guess_format(keys, given)
    loaded = load_examples(DatasetSpec.model_validate({**keys, "format": form}), scratch)
    examples = sorted(loaded.examples, key=lambda example: example.id)
    unused = [f"{loaded.rejected.summary}"] if loaded.rejected.count else []
    return examples[:limit], form, [*loaded.warnings, *unused]


class TokenizedTexts(NamedTuple):
    """Texts in tokens."""

    pieces: list[TokenizedExample]
    """Long raw texts are several."""
    empty: int
    """Texts that have no token to score."""
    warnings: list[str]
    """Sentences about what was left out or cut."""


def tokenized(
    examples: Sequence[Example],
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    model: str,
    config: Mapping[str, Any],
    max_length: int,
) -> TokenizedTexts:
    """Return the texts in tokens.

    Args:
        examples: the texts.
        name: of their source.
        tokenizer: with a chat template, unless all are raw texts.
        model: its name, for errors.
        config: of the model: its positions and embeddings are compared with the texts.
        max_length: tokens after which a conversation is cut, and of the pieces of raw texts.

    Raises:
        InputError: the chat template renders a conversation otherwise than its row says, the model lacks positions or
            an embedding, or no token is left to score.
    """
    rules = TokenizationRules(model, max_length)
    counts, pieces, empty = DatasetTokens(name, rules, limited=False), list[TokenizedExample](), 0
    for example, tokens in zip(examples, ConversationTokenizer(tokenizer).tokenize(examples), strict=True):
        require_embeddings(model, tokenizer, config["vocab_size"], example.id, tokens.input_ids)
        own = []
        for piece, part in divide(example, tokens, max_length):
            if counts.decide(piece, part) is None:
                ids, mask = part.input_ids[:max_length], part.response_mask[:max_length]
                own.append(TokenizedExample(piece.id, name, piece.split, ids, mask))
        own = [piece for piece in own if piece.positions]
        pieces += own
        empty += not own
    counts.require_rendered(REMEDY)
    if not pieces:
        raise InputError(f"{name}: {NO_TEXT}")
    longest = max(len(piece.input_ids) for piece in pieces)
    require_positions(longest, config, f"{name}: the longest text", "set --max-length {limit}")
    return TokenizedTexts(pieces, empty, counts.warnings)


def prompts_of(examples: Sequence[Example]) -> dict[str, str]:
    """Return example_id -> its prompt, as the token explorer shows it."""
    return {example.id: prompt_of(example.messages) for example in examples}


def named_apart(examples: Sequence[Example], number: int) -> list[Example]:
    """Return the examples of one of several sources, whose ids begin with the source's number."""
    return [replace(example, id=f"{number}/{example.id}") for example in examples]
