"""Conversations as tokens: chat template, response mask and truncation.

Response tokens are those of an assistant's turn with its end-of-turn token, without the template before and after it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenuq_ml.data.token_categories import special_ids
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TokenizedConversation(NamedTuple):
    """The tokens of a conversation; `response_mask` has the length of `input_ids`."""

    input_ids: list[int]
    response_mask: list[bool]
    truncated: bool


def default_template() -> str:
    """Return the template for models without one: plain headers, and the end-of-sequence token after an answer."""
    return Path(__file__).with_name("chat_template.jinja").read_text()


def end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the special token that ends an answer in the chat template; None if an answer ends with plain text.

    Raises:
        InputError: the template leaves out the assistant's text, or `tokenize_example` rejects it.
    """
    probe = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    tokens = tokenize_example(tokenizer, probe, 2**31)
    response = [token for token, scored in zip(*tokens[:2], strict=True) if scored]
    if not response:
        raise InputError(
            "the chat template leaves out the assistant's text; set `chat_template:` of the model in models.yaml to "
            "one that includes it"
        )
    return response[-1] if response[-1] in special_ids(tokenizer) else None


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]]) -> list[int]:
    """Return the tokens of a conversation and of the header of the assistant's next turn, as input for generation."""
    return tokenizer(_render(tokenizer, messages, header=True), add_special_tokens=False)["input_ids"]


def tokenize_example(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], max_length: int
) -> TokenizedConversation:
    """Return the tokens of a conversation, cut after `max_length`.

    The complete text is tokenised at once, as `apply_chat_template` does. A token belongs to a response if it begins
    between the end of the header and the end of the turn. It is identified by position and never by id: some
    tokenizers use the same id for padding and end of turn.

    Raises:
        InputError: there is no chat template, it changes earlier turns, or the tokenizer returns no offsets.
    """
    text = _render(tokenizer, messages)
    spans = _response_spans(tokenizer, messages, text)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} returns no character offsets; use a model with a fast tokenizer")
    with _untrimmed_offsets(tokenizer):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    mask = [any(start <= begin < end for start, end in spans) for begin, _ in encoded["offset_mapping"]]
    if mask:
        # Nothing predicts the first token.
        mask[0] = False
    return TokenizedConversation(ids[:max_length], mask[:max_length], len(ids) > max_length)


def _response_spans(
    tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], text: str
) -> list[tuple[int, int]]:
    """Return the first and the last index, exclusive, in `text` of each assistant's turn with its end of turn."""
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        header = _render(tokenizer, messages[:turn], header=True)
        up_to_turn = _render(tokenizer, messages[: turn + 1]).rstrip()
        if not text.startswith(up_to_turn) or not up_to_turn.startswith(header):
            raise InputError(
                "the chat template changes a turn when more turns follow, so that responses cannot be found in the "
                "text; set `chat_template:` of the model in models.yaml to one that does not"
            )
        spans.append((len(header), len(up_to_turn)))
    return spans


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, str]], header: bool = False) -> str:
    if not tokenizer.chat_template:
        raise InputError("the model has no chat template; set its `chat_template:` in models.yaml to a Jinja file")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header))
    except Exception as error:  # Jinja raises the errors of the template's author.
        raise InputError(
            f"the chat template rejects the conversation: {' '.join(str(error).split())}; correct the example, or set "
            "`chat_template:` of the model in models.yaml to a template that accepts it"
        ) from None


@contextmanager
def _untrimmed_offsets(tokenizer: Any) -> Iterator[None]:
    """Make the tokenizer return offsets that cover all of a token's text.

    Post-processors of byte-level tokenizers may trim a leading space from offsets: if the prompt ends in a space, its
    last token then seems to begin in the response. Post-processors do nothing else if no special tokens are added, so
    that ids stay the same.
    """
    backend = tokenizer.backend_tokenizer
    before, backend.post_processor = backend.post_processor, None
    try:
        yield
    finally:
        backend.post_processor = before
