"""Texts that are longer than a model's input, divided so that every token is trained once."""

from collections.abc import Iterator
from dataclasses import replace

from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.tokenization import ConversationTokens


def divide(
    example: Example, tokens: ConversationTokens, max_length: int
) -> Iterator[tuple[Example, ConversationTokens]]:
    """Yield the example, or the pieces of a raw text that has more than `max_length` tokens.

    A piece begins with the last token of the piece before it, from which its first trained token is predicted. Pieces
    after the first have the id `<id>/<number>`. Conversations are never divided.
    """
    if not example.is_text or len(tokens.input_ids) <= max_length:
        yield example, tokens
        return
    for number, start in enumerate(range(0, len(tokens.input_ids) - 1, max_length - 1)):
        window = slice(start, start + max_length)
        yield (
            replace(example, id=f"{example.id}/{number:04d}") if number else example,
            replace(
                tokens,
                input_ids=tokens.input_ids[window],
                # Nothing predicts the first token of a piece.
                response_mask=[False, *tokens.response_mask[window][1:]],
                weights=None if tokens.weights is None else tokens.weights[window],
            ),
        )
