"""What kind of token a token is: seven categories, by written rules over its text.

    special      a special token of the tokenizer, such as the end of turn
    code         anything between ``` and ```, the fences too
    whitespace   nothing but white space
    number       holds a digit or another numeric character (½, ², ٣, Ⅷ) and no letter
    word         holds a letter and begins a word: after white space, a mark, a number, a
                 special token or nothing (` the`, `(see`, `2nd`, `x2`, `三`)
    subword      goes on, with no white space between, where the token before left a word: a
                 letter or digit before letters (`ing`), an apostrophe before letters (`'s`),
                 a combining sign, a piece of a character
    punctuation  all else: marks, symbols (%, $, ×), emoji, pieces of a character by themselves

White space at a token's ends does not count, but in front it begins a new word. Scripts
without spaces are one long word: its first token is `word`, the others `subword`. Text
alone decides; models and losses are not known here.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache

CATEGORIES = ("special", "whitespace", "punctuation", "number", "word", "subword", "code")
FENCE = "```"
APOSTROPHES = "'’"
REPLACEMENT = "\ufffd"


def special_ids(tokenizer) -> list[int]:
    """Ids of special tokens: the named ones, and added ones that are marked as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted({*tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)})


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself; a leading space stays where the token has one."""

    @cache
    def text(token_id: int) -> str:
        decoded = tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
        piece = tokenizer.convert_ids_to_tokens(token_id) or ""
        # SentencePiece drops the leading space of a first piece.
        return f" {decoded}" if piece.startswith("▁") and not decoded.startswith(" ") else decoded

    return [text(token_id) for token_id in ids]


def categorise(texts: Sequence[str], is_special: Sequence[bool]) -> list[str]:
    """Categories of one example's response tokens, in order; a fence stays open until it is closed."""
    categories: list[str] = []
    in_code, in_word, backticks = False, False, 0
    for text, special in zip(texts, is_special, strict=True):
        if special:
            categories.append("special")
            in_word, backticks = False, 0
            continue
        # A fence may be split over tokens: ` `` and ``` alike count once three in a row are there.
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
        # `word.` or `word ` leave no word to go on with; `x2` does.
        in_word = category in ("word", "subword") and (_is_letter(text[-1]) or text[-1].isalnum())
    return categories


def _fences(text: str, before: int) -> tuple[int, int]:
    """Fences completed in `text`, and backticks in a row at its end."""
    fences, run = 0, before
    for character in text:
        run = run + 1 if character == "`" else 0
        if run == len(FENCE):
            fences += 1
    return fences, run


def _mark_fence(categories: list[str], texts: Sequence[str], end: int) -> None:
    """Backtick tokens right before the one that completes a fence belong to it."""
    at = end - 1
    while at >= 0 and texts[at] and not texts[at].strip("`"):
        categories[at] = "code"
        at -= 1


def _is_letter(character: str) -> bool:
    """Letters, the signs that combine with them, and pieces of a character, which may be one."""
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
