"""Tokens of spans that are not trained: characters of a turn's content, found in the rendered conversation."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from tokenuq_ml.data.answers import Fault, RenderedConversation
from tokenuq_ml.data.examples import Example

NOT_FOUND = "masked text not found"


def untrained_tokens(
    example: Example, conversation: RenderedConversation, offsets: Sequence[tuple[int, int]]
) -> Iterator[range | Fault]:
    """Yield the tokens that overlap each of the example's untrained spans; a fault if the template changes the text.

    Args:
        example: with `untrained_spans`.
        conversation: as it is rendered.
        offsets: characters of each token in the rendered text, in order.
    """
    for turn, start, end in example.untrained_spans or ():
        answer = conversation.answers.get(turn)
        if answer is None:
            # The turn is not trained at all, or a fault says why it was not found.
            continue
        content = example.messages[turn]["content"]
        # Templates strip white space around the content, and place reasoning before it.
        text = content.strip()
        place = conversation.text.rfind(text, answer.start, answer.stop)
        if place < 0:
            yield Fault(turn, NOT_FOUND, "the template changes the text of the turn, so that `mask` cannot be applied")
            continue
        shift = place - (len(content) - len(content.lstrip()))
        # A token that begins before the span may reach into it.
        first = bisect_left(offsets, (start + shift,))
        while first and offsets[first - 1][1] > start + shift:
            first -= 1
        yield range(first, bisect_left(offsets, (end + shift,)))
