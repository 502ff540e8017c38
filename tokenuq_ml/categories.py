"""What kind of token a token is: seven categories, by written rules over its text.

    special      a special token of the tokenizer, such as the end of turn
    code         anything between ``` and ```, the fences too
    whitespace   nothing but white space
    number       holds a digit or another numeric character (½, ٣) and no letter
    word         begins with a letter, and begins a word: after white space, punctuation,
                 a number or nothing
    subword      begins with a letter or an apostrophe before letters, or is a piece of a
                 character, and goes on where a word was left
    punctuation  all else: marks, symbols, signs, emoji

White space at a token's ends does not count, but in front it begins a new word. Text alone
decides; models and losses are not known here.
"""

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
        in_word = category in ("word", "subword") and not text[-1:].isspace()
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
    while at >= 0 and texts[at].strip() and not texts[at].strip("`"):
        categories[at] = "code"
        at -= 1


def _category(text: str, in_word: bool) -> str:
    core = text.strip()
    if not core:
        return "whitespace" if text else "punctuation"
    continues = in_word and not text[0].isspace()
    if REPLACEMENT in core:
        # A piece of a character: alone it has no text, so it goes with the word it stands in.
        return "subword" if continues else "word" if any(map(str.isalpha, core)) else "punctuation"
    letters = any(map(str.isalpha, core))
    if not letters:
        return "number" if any(map(str.isnumeric, core)) else "punctuation"
    if continues and (core[0].isalnum() or core[0] in APOSTROPHES):
        return "subword"
    if core[0].isalnum():
        return "word"
    # A mark before letters: `'s` after nothing, `(see`: what it says is a word.
    return "word"
