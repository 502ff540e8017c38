"""Conversations as tokens: chat template, response mask, token weights and truncation.

Response tokens are those of an assistant's turn with its end-of-turn token, without the template before and after it.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tokenuq_ml.data.answers import Fault, RenderedConversation, missing_texts, render_conversation
from tokenuq_ml.data.chat_template import ChatTemplate, Span, TemplateError, default_template
from tokenuq_ml.data.encoding import Encoded, Text, TextEncoder
from tokenuq_ml.data.examples import TEXT_ROLE, Example, Turn
from tokenuq_ml.data.formats.turns import REASONING_KEYS, content_of
from tokenuq_ml.data.sources.records import BrokenRow
from tokenuq_ml.data.template_limits import LIMITS, TemplateLimitError
from tokenuq_ml.data.untrained_spans import untrained_tokens
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ConversationTokenizer", "Fault", "default_template", "prompt_ids", "tokenize_example"]


_REMEDY = "correct the example, or use a chat template that renders it"


class TokenizedConversation(NamedTuple):
    """The tokens of a conversation; `response_mask` has the length of `input_ids`."""

    input_ids: list[int]
    response_mask: list[bool]
    truncated: bool


@dataclass(frozen=True, slots=True)
class ConversationTokens:
    """All tokens of an example, what is wrong with its rendering, and what was noticed in its texts."""

    input_ids: list[int] = field(default_factory=list)
    response_mask: list[bool] = field(default_factory=list)
    weights: list[float] | None = None
    """Factor of each token's term in training; None: 1 for all response tokens."""
    faults: tuple[Fault, ...] = ()
    has_special_tokens: bool = False
    """Whether a text of the conversation holds special tokens of the tokenizer."""
    looks_templated: bool = False
    """Whether a text of the conversation holds the template's header of an answer."""
    ignored: tuple[str, ...] = ()
    """Names in the row that the template has no use for: of `chat_template_kwargs`, and speakers (`name` of a turn)."""

    @property
    def needed(self) -> int:
        """Tokens up to the last response token; 0 if there is none."""
        reverse = self.response_mask[::-1]
        return len(reverse) - reverse.index(True) if True in reverse else 0


class ConversationTokenizer:
    """Tokenises examples with a chat template.

    A token belongs to a response if it begins between the end of the generation prompt and the end of the turn. It is
    identified by position and never by id: some tokenizers use the same id for padding and end of turn.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        special_tokens_in_text: whether special tokens in turns are encoded as text, or kept as special tokens.
        **variables: of the template, unless an example has its own.

    Raises:
        InputError: there is no chat template, or the tokenizer returns no offsets.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        special_tokens_in_text: Literal["encode", "keep"] = "encode",
        **variables: Any,
    ):
        self.template = ChatTemplate(tokenizer, **variables)
        self._tokenizer, self._encoder = tokenizer, TextEncoder(tokenizer)
        self._encodes_special = special_tokens_in_text == "encode"

    def tokenize(self, examples: Sequence[Example]) -> list[ConversationTokens]:
        """Return the tokens of each example.

        An example that cannot be tokenised has a fault and no tokens. One with faults and tokens is rendered in
        another way than its row says.
        """
        with LIMITS:
            rendered = [self._rendered(example) for example in examples]
        possible = [number for number, (text, _) in enumerate(rendered) if text is not None]
        encoded = dict(
            zip(possible, self._encoder.encode([text for text, _ in rendered if text is not None]), strict=True)
        )
        return [
            self._tokens(example, rendered[number][1], encoded.get(number)) for number, example in enumerate(examples)
        ]

    def prompt_ids(
        self,
        messages: Sequence[Turn],
        arguments: Mapping[str, Any] | None = None,
        trained: Iterable[int] | None = None,
        allow_drops: bool = False,
    ) -> list[int]:
        """Return the ids of a conversation and of the header of the assistant's next turn, as input for generation.

        Args:
            messages: the turns.
            arguments: `tools` and `chat_template_kwargs` of the conversation, if it has any.
            trained: which of the turns are trained; default: all of the assistant's.
            allow_drops: whether the template may leave out a part of the conversation.

        Raises:
            InputError: the template rejects the conversation, or leaves out a part of it.
        """
        given = arguments or {}
        text = self.template.prompt(messages, given)
        located = None if allow_drops else self.template.locate(messages, given, text, header=True)
        for fault in () if allow_drops else missing_texts(messages, given, text, located):
            raise InputError(f"{describe(fault)}; {_REMEDY}")
        answers = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if trained is not None:
            answers = sorted(set(answers) & set(trained))
        borders: list[int] = []
        if answers:
            before = render_conversation(self.template, messages, given, answers)
            if text.startswith(before.text.rstrip()):
                borders = [span.start for span in before.answers.values()]
        encoded = self._encoder.encode([Text(text, borders, self._literal(messages, given, text, True))])[0]
        if isinstance(encoded, InputError):
            raise encoded
        return encoded.ids

    def prompt_of(self, example: Example, allow_drops: bool = False) -> list[int]:
        """Return the ids from which the last answer of an example is generated; of all its turns if it has no answer.

        They are the first ones of the ids that are trained, if the example is tokenised without a fault.

        Raises:
            InputError: as `prompt_ids`.
        """
        messages, weights = example.messages, _turn_weights(example)
        before = messages[:-1] if messages[-1]["role"] == "assistant" else messages
        trained = [turn for turn, weight in enumerate(weights) if weight]
        return self.prompt_ids(before, example.template, trained, allow_drops)

    def _rendered(self, example: Example) -> tuple[Text | None, RenderedConversation]:
        """Return the text to encode, None if there is none, and the conversation with its faults."""
        messages, arguments = example.messages, example.template
        if example.is_text:
            text = messages[0]["content"]
            matches = self.template.special.finditer(text) if self._encodes_special else ()
            # One more character, for the end of the sequence.
            conversation = RenderedConversation(text, {0: Span(0, len(text) + 1)})
            return Text(text, (), [Span(*match.span()) for match in matches]), conversation
        weights = _turn_weights(example)
        try:
            conversation = render_conversation(
                self.template, messages, arguments, [turn for turn, weight in enumerate(weights) if weight]
            )
            literal = self._literal(messages, arguments, conversation.text, False)
        except TemplateLimitError:
            raise
        except TemplateError as error:
            return None, RenderedConversation("", {}, [Fault(None, "template error", str(error))])
        except InputError as error:
            return None, RenderedConversation("", {}, [Fault(None, "special tokens", str(error))])
        borders = [span.start for span in conversation.answers.values()]
        return Text(conversation.text, borders, literal), conversation

    def _tokens(
        self, example: Example, conversation: RenderedConversation, encoded: Encoded | InputError | None
    ) -> ConversationTokens:
        noticed = self._noticed(example)
        faults = tuple(conversation.faults)
        if encoded is None or isinstance(encoded, InputError):
            faults += () if encoded is None else (Fault(None, "not encodable", str(encoded)),)
            return ConversationTokens([], [], None, faults, **noticed)
        ids, offsets = self._as_sequence(conversation.text, encoded) if example.is_text else encoded
        mask, weights, turn_weights = [False] * len(ids), [0.0] * len(ids), _turn_weights(example)
        for turn, span in conversation.answers.items():
            first, last = (bisect_left(offsets, (position,)) for position in span)
            mask[first:last] = [True] * (last - first)
            weights[first:last] = [turn_weights[turn]] * (last - first)
        if mask:
            # Nothing predicts the first token.
            mask[0] = False
        for untrained in untrained_tokens(example, conversation, offsets):
            if isinstance(untrained, Fault):
                faults += (untrained,)
                continue
            for token in untrained:
                mask[token], weights[token] = False, 0.0
        is_weighted = any(weight not in (0, 1) for weight in turn_weights)
        return ConversationTokens(ids, mask, weights if is_weighted else None, faults, **noticed)

    def _as_sequence(self, text: str, encoded: Encoded) -> Encoded:
        """Return the tokens of a text with what the tokenizer adds to texts, and with the end of the sequence."""
        alone, added = (self._tokenizer("x", add_special_tokens=adds)["input_ids"] for adds in (False, True))
        first = next((at for at in range(len(added)) if added[at : at + len(alone)] == alone), 0)
        before, after = added[:first], added[first + len(alone) :]
        end = self._tokenizer.eos_token_id
        if end is not None and end not in after:
            after = [*after, end]
        places = [(len(text), len(text))] * len(after)
        return Encoded([*before, *encoded.ids, *after], [*([(0, 0)] * len(before)), *encoded.offsets, *places])

    @cached_property
    def _header(self) -> str:
        """The first line of the header of an answer; empty if it is too short to be told from text."""
        first = self.template.header.partition("\n")[0]
        return first if len(first) > 3 else ""

    def _noticed(self, example: Example) -> dict[str, Any]:
        texts = [turn["content"] for turn in example.messages]
        given = [*example.template.get("chat_template_kwargs", ())]
        # The name of a tool is in its call too.
        given += ["name"] if any("name" in turn and turn["role"] != "tool" for turn in example.messages) else []
        return {
            "ignored": tuple(name for name in given if name not in self.template.names),
            "has_special_tokens": any(self.template.special.search(text) for text in texts),
            "looks_templated": bool(self._header) and any(self._header in text for text in texts),
        }

    def _literal(self, messages: Sequence[Turn], arguments: Mapping[str, Any], text: str, header: bool) -> list[Span]:
        """Return the parts of a rendered conversation in which special tokens are text.

        Raises:
            InputError: they cannot be told from the template's own.
        """
        if not self._encodes_special or not self.template.special.search("\n".join(_texts([*messages, arguments]))):
            return []
        found = self.template.locate_parts(messages, arguments, text, self.template.special, header)
        if found is None:
            raise InputError(
                "special tokens in its text cannot be told from those of the chat template; remove them, or set "
                "`special_tokens_in_text: keep` of the study in studies.yaml"
            )
        return found


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Turn]) -> list[int]:
    """Return the tokens of a conversation and of the header of the assistant's next turn, as input for generation."""
    return ConversationTokenizer(tokenizer).prompt_ids(messages)


def tokenize_example(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Turn], max_length: int
) -> TokenizedConversation:
    """Return the tokens of a conversation, cut after `max_length`.

    Raises:
        InputError: there is no chat template, it does not render the conversation as generation would have it, or the
            tokenizer returns no offsets.
    """
    turns = [_normalised(turn, f"turn {number}") for number, turn in enumerate(messages, 1)]
    (tokens,) = ConversationTokenizer(tokenizer).tokenize([Example("", "", turns)])
    for fault in tokens.faults:
        raise InputError(f"{describe(fault)}; {_REMEDY}")
    ids, mask = tokens.input_ids, tokens.response_mask
    return TokenizedConversation(ids[:max_length], mask[:max_length], len(ids) > max_length)


def _normalised(turn: Turn, where: str) -> Turn:
    """Return a turn with text as its content and with our name of its reasoning, as rows have them."""
    try:
        reasoning, text = content_of(turn.get("content"), where)
    except BrokenRow as broken:
        raise InputError(str(broken)) from None
    reasoning += [str(turn[key]) for key in REASONING_KEYS if turn.get(key)]
    said = {"reasoning_content": "\n\n".join(dict.fromkeys(reasoning))} if reasoning else {}
    return {key: value for key, value in turn.items() if key not in REASONING_KEYS} | {"content": text} | said


def describe(fault: Fault) -> str:
    """Return a fault in words that name the turn, counted from 1."""
    return fault.detail if fault.turn is None else f"turn {fault.turn + 1}: {fault.detail}"


def _turn_weights(example: Example) -> list[float]:
    """Return the weight of each turn; only assistant turns, and raw text, have one other than 0."""
    given = example.turn_weights or [1.0] * len(example.messages)
    pairs = zip(example.messages, given, strict=True)
    return [weight if message["role"] in ("assistant", TEXT_ROLE) else 0.0 for message, weight in pairs]


def _texts(value: Any) -> list[str]:
    """Return all texts in a JSON value."""
    if isinstance(value, str):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for item in items for text in _texts(item)]
