"""From conversations to tokens: chat template, response mask, truncation.

A response token is one of an assistant's turn, its end-of-turn token included, and nothing
of the template before or after it. Knows nothing of models or of how tokens are trained.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tokenuq_ml.data.token_categories import special_ids
from tokenuq_ml.errors import InputError


class Tokenized(NamedTuple):
    """One conversation; `response_mask` has the length of `input_ids`."""

    input_ids: list[int]
    response_mask: list[bool]
    truncated: bool


def default_template() -> str:
    """The chat template of models that have none: plain headers, and the end-of-sequence token after an answer."""
    return Path(__file__).with_name("chat_template.jinja").read_text()


def end_of_turn(tokenizer) -> int | None:
    """The special token that an answer ends with under the chat template; None where it ends with plain text.

    Raises:
        InputError: as of `tokenize_example`, or the template does not show what the assistant says.
    """
    probe = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}]
    tokens = tokenize_example(tokenizer, probe, 2**31)
    response = [token for token, scored in zip(*tokens[:2], strict=True) if scored]
    if not response:
        raise InputError(
            "the chat template leaves out what the assistant says; set `chat_template:` of the model in models.yaml to "
            "one that shows it"
        )
    return response[-1] if response[-1] in special_ids(tokenizer) else None


def prompt_ids(tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The conversation with the header of the assistant's next turn: what generation goes on from."""
    return tokenizer(_render(tokenizer, messages, header=True), add_special_tokens=False)["input_ids"]


def tokenize_example(tokenizer, messages: list[dict[str, str]], max_length: int) -> Tokenized:
    """Tokens of a conversation, cut after `max_length`.

    The whole text is tokenised at once, as `apply_chat_template` does, and a token belongs
    to a response if it begins inside of it: from the end of the header to the end-of-turn
    token. By position and never by id: in some tokenizers padding and end of turn are one.

    Raises:
        InputError: there is no chat template, it rewrites earlier turns, or the tokenizer gives no offsets.
    """
    text = _render(tokenizer, messages)
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        header = _render(tokenizer, messages[:turn], header=True)
        said = _render(tokenizer, messages[: turn + 1]).rstrip()
        if not text.startswith(said) or not said.startswith(header):
            raise InputError(
                "the chat template renders a turn otherwise once more turns follow, so that responses "
                "cannot be found in the text; set `chat_template:` of the model in models.yaml to one "
                "that does not"
            )
        spans.append((len(header), len(said)))
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{type(tokenizer).__name__} gives no character offsets; use a model with a fast tokenizer")
    with _whole_offsets(tokenizer):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    mask = [any(start <= begin < end for start, end in spans) for begin, _ in encoded["offset_mapping"]]
    if mask:
        # Nothing comes before the first token that it could be predicted from.
        mask[0] = False
    return Tokenized(ids[:max_length], mask[:max_length], len(ids) > max_length)


def _render(tokenizer, messages: list[dict[str, str]], header: bool = False) -> str:
    if not tokenizer.chat_template:
        raise InputError("the model has no chat template; set `chat_template:` of it in models.yaml to a Jinja file")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)
    except Exception as error:  # Jinja raises what the template's author wrote.
        raise InputError(
            f"the chat template refuses the conversation: {' '.join(str(error).split())}; mend the "
            "example, or set `chat_template:` of the model in models.yaml to one that takes it"
        ) from None


@contextmanager
def _whole_offsets(tokenizer) -> Iterator[None]:
    """Offsets that hold all of a token's text.

    Byte-level post-processors may trim a leading space from offsets: where the prompt ends in
    a space, its last token then seems to begin in the response. Without special tokens to
    add, trimming is all that they do, and ids stay as they are.
    """
    backend = tokenizer.backend_tokenizer
    before, backend.post_processor = backend.post_processor, None
    try:
        yield
    finally:
        backend.post_processor = before
