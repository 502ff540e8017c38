"""Categories of tokens: seven kinds, by rules over a token's text alone.

    special      a special token of the tokenizer, such as the end of turn
    code         anything between ``` and ```, including the fences
    whitespace   white space only
    number       holds a digit or another numeric character (½, ², ٣, Ⅷ) and no letter
    word         holds a letter and begins a word: after white space, a mark, a number, a
                 special token or nothing (` the`, `(see`, `2nd`, `x2`, `三`)
    subword      continues the word of the token before it, without white space between: a
                 letter or digit before letters (`ing`), an apostrophe before letters (`'s`),
                 a combining sign, a piece of a character
    punctuation  everything else: marks, symbols (%, $, ×), emoji, single pieces of a character

White space at a token's ends is ignored, except that leading white space begins a new word. Text in a script without
spaces is one long word: its first token is `word`, the others are `subword`.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

CATEGORIES = ("special", "whitespace", "punctuation", "number", "word", "subword", "code")
FENCE = "```"
APOSTROPHES = "'’"
REPLACEMENT = "\ufffd"


def special_ids(tokenizer: Any) -> list[int]:
    """Return the ids of special tokens: the named ones, and added tokens that are marked as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)})


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Return the text of each token, including a leading space."""

    @cache
    def text(token_id: int) -> str:
        decoded = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        piece = tokenizer.convert_ids_to_tokens(token_id) or ""
        # SentencePiece removes the leading space of a first piece.
        return f" {decoded}" if piece.startswith("▁") and not decoded.startswith(" ") else decoded

    return [text(token_id) for token_id in ids]


def categorise(texts: Sequence[str], is_special: Sequence[bool]) -> list[str]:
    """Return the categories of one example's response tokens, in order; a code fence stays open until it is closed."""
    categories: list[str] = []
    in_code, in_word, backticks = False, False, 0
    for text, special in zip(texts, is_special, strict=True):
        if special:
            categories.append("special")
            in_word, backticks = False, 0
            continue
        # A fence may be split over tokens: it is complete at the third backtick in a row.
        fences, backticks = _fences(text, backticks)
        if in_code or fences:
            if fences and not in_code:
                _mark_fence(categories, texts, len(categories))
            categories.append("code")
            in_code ^= fences % 2 == 1
            in_word = False
            continue
        category = _category(text, in_word)
        categories.append(category)
        # A token can continue `x2`, but not `word.` or `word `.
        in_word = category in ("word", "subword") and (_is_letter(text[-1]) or text[-1].isalnum())
    return categories


def _fences(text: str, before: int) -> tuple[int, int]:
    """Return the number of fences completed in `text`, and of consecutive backticks at its end."""
    fences, run = 0, before
    for character in text:
        run = run + 1 if character == "`" else 0
        if run == len(FENCE):
            fences += 1
    return fences, run


def _mark_fence(categories: list[str], texts: Sequence[str], end: int) -> None:
    """Mark the backtick tokens right before `end` as code: they belong to the fence that is completed there."""
    at = end - 1
    while at >= 0 and texts[at] and not texts[at].strip("`"):
        categories[at] = "code"
        at -= 1


def _is_letter(character: str) -> bool:
    """Return whether it is a letter, a sign that combines with letters, or a piece of a character, which may be one."""
    return character.isalpha() or character == REPLACEMENT or unicodedata.category(character).startswith("M")


def _category(text: str, in_word: bool) -> str:
    core = text.strip()
    if not core:
        return "whitespace" if text else "punctuation"
    continues = in_word and not text[0].isspace()
    if continues and _is_letter(core[0]):
        return "subword"
    if not any(map(str.isalpha, core)):
        return "number" if any(map(str.isnumeric, core)) else "punctuation"
    if continues and (core[0].isalnum() or core[0] in APOSTROPHES):
        return "subword"
    return "word"
