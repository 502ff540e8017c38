"""Texts that belong to no study, read and tokenised as the stages do it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tokenuq_ml.config import DatasetSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.data.examples import TEXT_ROLE, Example
from tokenuq_ml.data.guessed_format import guess_format
from tokenuq_ml.data.load import load_examples
from tokenuq_ml.data.raw_text import divide
from tokenuq_ml.data.tokenization import ConversationTokenizer
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.token_rows import DatasetTokens, TokenizationRules

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
    return examples[:limit], form, list(loaded.warnings)


def tokenized(
    examples: Sequence[Example], name: str, tokenizer: PreTrainedTokenizerBase, model: str, max_length: int
) -> tuple[list[TokenizedExample], list[str]]:
    """Return the texts in tokens, long raw texts in pieces, and sentences about what was left out or cut.

    Args:
        examples: the texts.
        name: of their source.
        tokenizer: with a chat template, unless all are raw texts.
        model: its name, for errors.
        max_length: tokens after which a conversation is cut, and of the pieces of raw texts.

    Raises:
        InputError: the chat template renders a conversation otherwise than its row says, or no token is left to score.
    """
    rules = TokenizationRules(model, max_length)
    counts = DatasetTokens(name, rules, limited=False)
    found: list[TokenizedExample] = []
    for example, tokens in zip(examples, ConversationTokenizer(tokenizer).tokenize(examples), strict=True):
        for piece, part in divide(example, tokens, max_length):
            if counts.decide(piece, part) is None:
                ids, mask = part.input_ids[:max_length], part.response_mask[:max_length]
                found.append(TokenizedExample(piece.id, name, piece.split, ids, mask))
    counts.require_rendered()
    scored = [one for one in found if one.positions]
    if not scored:
        raise InputError(f"{name}: {NO_TEXT}")
    return scored, counts.warnings


def prompts_of(examples: Sequence[Example]) -> dict[str, str]:
    """Return example_id -> all turns but the assistant's, as the token explorer shows them."""
    shown = ("assistant", TEXT_ROLE)
    return {
        example.id: "\n\n".join(str(turn["content"]) for turn in example.messages if turn["role"] not in shown)
        for example in examples
    }


def named_apart(examples: Sequence[Example], number: int) -> list[Example]:
    """Return the examples of one of several sources, whose ids begin with the source's number."""
    return [replace(example, id=f"{number}/{example.id}") for example in examples]
