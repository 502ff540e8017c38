"""From rendered conversations to token ids, so that the ids of a prompt are a prefix of the ids that are trained.

A conversation is encoded in one piece, as `apply_chat_template` does, with two exceptions:

- Where a token would stand across the border of prompt and answer, or the prompt alone has other tokens, the text is
  cut at that border. Byte-level tokenizers do so if a header ends in a space: ` positive` is one token, and generation
  begins after the space.
- Special tokens in the text of a turn are encoded as text.

transformers' `sanitize_control_tokens` does the second too. It is missing in its first versions of 5, and it also
encodes tokens such as `<think>` as text, which answers are trained to write.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenuq_ml.data.chat_template import Span
from tokenuq_ml.data.token_categories import special_ids
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CACHED = 4096
_CACHED_CHARACTERS = 200


class Encoded(NamedTuple):
    """Token ids, and the characters of each token."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Text(NamedTuple):
    """A text to encode, the positions where answers begin, and the parts in which special tokens are text."""

    text: str
    borders: Sequence[int] = ()
    literal: Sequence[Span] = ()


class TextEncoder:
    """Encodes texts with a fast tokenizer.

    Raises:
        InputError: the tokenizer returns no offsets.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{type(tokenizer).__name__} returns no character offsets; use a model with a fast tokenizer"
            )
        self._tokenizer = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer
        self._special = frozenset(special_ids(tokenizer))
        self._headers: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[Text]) -> list[Encoded | InputError]:
        """Return the tokens of each text, or the error that says why it has none."""
        with self._plain_backend():
            whole = self._backend.encode_batch([text.text for text in texts], add_special_tokens=False)
            return [self._finished(text, Encoded(one.ids, one.offsets)) for text, one in zip(texts, whole, strict=True)]

    def _finished(self, text: Text, encoded: Encoded) -> Encoded | InputError:
        try:
            if text.literal:
                encoded = self._with_literal(text.text, encoded, text.literal)
            cuts = [border for border in text.borders if not self._is_clean(text, encoded, border)]
            return self._cut(text, encoded, cuts) if cuts else encoded
        except InputError as error:
            return error

    def _encode(self, text: str, literal: bool = False, inside: bool = False) -> Encoded:
        """Return the tokens of a piece of text.

        Args:
            text: the piece.
            literal: whether special tokens in it are text.
            inside: whether it stands inside a text, where the tokenizer must not add the space of a beginning.
        """
        guard = self._guard if inside else ""
        before, self._backend.encode_special_tokens = self._backend.encode_special_tokens, literal
        try:
            one = self._backend.encode(guard + text, add_special_tokens=False)
        finally:
            self._backend.encode_special_tokens = before
        ids, offsets = one.ids, one.offsets
        if literal and not self._special.isdisjoint(ids):
            raise InputError(
                "the tokenizer cannot encode the special tokens in its text as text; remove them, or set "
                "`special_tokens_in_text: keep` of the study in studies.yaml"
            )
        if not guard:
            return Encoded(ids, offsets)
        first = bisect_left(offsets, (len(guard),))
        if first and offsets[first - 1][1] > len(guard):
            raise InputError("the tokenizer cannot encode a part of the text by itself")
        moved = [(begin - len(guard), end - len(guard)) for begin, end in offsets[first:]]
        return Encoded(ids[first:], moved)

    @cached_property
    def _guard(self) -> str:
        """A text to put before a piece, if the tokenizer treats the beginning of a text in another way; else empty."""
        special = [self._tokenizer.convert_ids_to_tokens(id_) for id_ in sorted(self._special)[:1]]
        after = [self._backend.encode(f"{token}x", add_special_tokens=False).ids[1:] for token in special]
        return "" if after == [self._backend.encode("x", add_special_tokens=False).ids] else "\n"

    # Special tokens as text.

    def _with_literal(self, text: str, encoded: Encoded, literal: Sequence[Span]) -> Encoded:
        """Return the tokens with special tokens inside `literal` as text.

        The template's special tokens divide a text into stretches that are encoded one by one; those that touch
        `literal` are encoded again.
        """
        fixed = [
            index
            for index, (id_, (begin, end)) in enumerate(zip(*encoded, strict=True))
            if id_ in self._special and not _touches(literal, begin, end)
        ]
        parts = []
        for before, after in zip([-1, *fixed], [*fixed, len(encoded.ids)], strict=True):
            begin = encoded.offsets[before][1] if before >= 0 else 0
            end = encoded.offsets[after][0] if after < len(encoded.ids) else len(text)
            if before >= 0:
                parts.append(Encoded([encoded.ids[before]], [encoded.offsets[before]]))
            if _touches(literal, begin, end):
                parts.append(_moved(self._encode(text[begin:end], literal=True, inside=begin > 0), begin))
            else:
                parts.append(Encoded(encoded.ids[before + 1 : after], encoded.offsets[before + 1 : after]))
        return _joined(parts)

    # Borders of prompt and answer.

    def _is_clean(self, text: Text, encoded: Encoded, border: int) -> bool:
        """Return whether the tokens before `border` are those of the prompt alone.

        Compared from the last special token before it: no token reaches over a special one.
        """
        index = bisect_left(encoded.offsets, (border,))
        if index and encoded.offsets[index - 1][1] > border:
            return False
        first = next((each for each in range(index - 1, -1, -1) if encoded.ids[each] in self._special), 0)
        begin = encoded.offsets[first][0] if first else 0
        header, literal = text.text[begin:border], _within(text.literal, begin, border)
        expected = (
            self._with_literal(header, self._encode(header), literal).ids if literal else self._header_ids(header)
        )
        return encoded.ids[first:index] == expected

    def _header_ids(self, header: str) -> list[int]:
        """Return the ids of a header by itself; most headers repeat."""
        if len(header) > _CACHED_CHARACTERS:
            return self._encode(header).ids
        if header not in self._headers:
            if len(self._headers) >= _CACHED:
                self._headers.clear()
            self._headers[header] = self._encode(header).ids
        return self._headers[header]

    def _cut(self, text: Text, whole: Encoded, cuts: Sequence[int]) -> Encoded:
        """Return the tokens of the pieces between `cuts`.

        Raises:
            InputError: the pieces have another text than the whole, because the tokenizer adds a space.
        """
        parts = []
        for start, stop in zip([0, *cuts], [*cuts, len(text.text)], strict=True):
            piece = text.text[start:stop]
            encoded = self._encode(piece, inside=start > 0)
            inner = _within(text.literal, start, stop)
            parts.append(_moved(self._with_literal(piece, encoded, inner) if inner else encoded, start))
        joined = _joined(parts)
        if self._decoded(joined.ids) != self._decoded(whole.ids):
            raise InputError(
                "a token would stand across the border of prompt and answer, and the tokenizer cannot encode both "
                "apart; set `chat_template:` of the model in models.yaml to one that has no space before an answer"
            )
        return joined

    def _decoded(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    @contextmanager
    def _plain_backend(self) -> Iterator[None]:
        """Make the tokenizer return all tokens, with offsets that cover all of a token's text.

        Post-processors of byte-level tokenizers may trim a leading space from offsets: if the prompt ends in a space,
        its last token then seems to begin in the answer. They do nothing else if no special tokens are added.
        Truncation and padding are stored in some tokenizers' files.
        """
        backend = self._backend
        before = backend.post_processor, backend.truncation, backend.padding
        backend.post_processor = None
        backend.no_truncation()
        backend.no_padding()
        try:
            yield
        finally:
            backend.post_processor = before[0]
            if before[1]:
                backend.enable_truncation(**before[1])
            if before[2]:
                backend.enable_padding(**before[2])


def _touches(spans: Sequence[Span], begin: int, end: int) -> bool:
    return any(span.start < end and span.stop > begin for span in spans)


def _within(spans: Sequence[Span], begin: int, end: int) -> list[Span]:
    """Return the parts of spans between two positions, counted from the first."""
    found = [span for span in spans if span.start < end and span.stop > begin]
    return [Span(max(span.start - begin, 0), min(span.stop, end) - begin) for span in found]


def _moved(encoded: Encoded, by: int) -> Encoded:
    return Encoded(encoded.ids, [(begin + by, end + by) for begin, end in encoded.offsets])


def _joined(parts: Sequence[Encoded]) -> Encoded:
    return Encoded([id_ for part in parts for id_ in part.ids], [pair for part in parts for pair in part.offsets])
