"""Where response tokens are in the text of the answers, and answers with some of their tokens marked.

Positions of tables count tokens of the rendered conversation. A person, and another study's tokenizer, need characters.
Does not import torch.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from tokenuq_ml.data.token_categories import REPLACEMENT

_RESYNC = 16
"""Characters within which the next token is searched if the text does not continue with it."""
OPEN, CLOSE = "⟦", "⟧"


class TokenSpan(NamedTuple):
    """A token's place: turn of the conversation, and characters of the turn's content, from `start` up to `end`."""

    position: int
    turn: int
    start: int
    end: int


def locate_tokens(tokens: Sequence[tuple[int, str]], answers: Sequence[tuple[int, str]]) -> list[TokenSpan]:
    """Return the places of response tokens; tokens of the template, such as the end of turn, have none.

    Args:
        tokens: position and text of an example's response tokens, by position.
        answers: number and content of the conversation's trained turns.
    """
    found: list[TokenSpan] = []
    for (turn, content), run in zip(answers, _runs(tokens), strict=False):
        found += _in_turn(run, turn, content)
    return found


def _runs(tokens: Sequence[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Yield the tokens of each turn: runs of consecutive positions."""
    run: list[tuple[int, str]] = []
    for position, text in tokens:
        if run and position != run[-1][0] + 1:
            yield run
            run = []
        run.append((position, text))
    if run:
        yield run


def _in_turn(run: list[tuple[int, str]], turn: int, content: str) -> Iterator[TokenSpan]:
    end, pieces = 0, []
    for position, text in run:
        if REPLACEMENT in text or not text:
            # A piece of a character: it gets the characters up to the next token that can be read.
            pieces.append(position)
            continue
        start = content.find(text, end, end + _RESYNC + len(text))
        if start < 0:
            continue
        yield from (TokenSpan(piece, turn, end, start) for piece in pieces if start > end)
        pieces, end = [], start + len(text)
        yield TokenSpan(position, turn, start, end)
    yield from (TokenSpan(piece, turn, end, len(content)) for piece in pieces if len(content) > end)


def merged(spans: Collection[TokenSpan]) -> list[tuple[int, int, int]]:
    """Return `turn, start, end` of spans, with adjacent ones joined."""
    joined: list[tuple[int, int, int]] = []
    for _, turn, start, end in sorted(spans, key=lambda span: span[1:]):
        if joined and joined[-1][0] == turn and start <= joined[-1][2]:
            joined[-1] = (turn, joined[-1][1], max(end, joined[-1][2]))
        else:
            joined.append((turn, start, end))
    return joined


def marked(content: str, turn: int, spans: Collection[tuple[int, int, int]]) -> str:
    """Return a turn's content with spans of it between `⟦` and `⟧`."""
    parts, end = [], 0
    for start, stop in sorted((start, stop) for of, start, stop in spans if of == turn):
        parts += [content[end:start], OPEN, content[start:stop], CLOSE]
        end = stop
    return "".join([*parts, content[end:]])
