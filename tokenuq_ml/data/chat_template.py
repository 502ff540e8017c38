"""A tokenizer's chat template: rendered conversations, generation prompts, and where each turn is in the text."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenuq_ml.data.examples import Turn
from tokenuq_ml.data.template_limits import LIMITS, TemplateLimitError
from tokenuq_ml.data.token_categories import special_ids
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = re.compile("\ufdd0(/?)([0-9]+)\ufdd1")
"""Marks around a turn's text: Unicode reserves these two code points for such internal use, so that texts lack them."""
_PROBE = [{"role": "user", "content": "Which one?"}]
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Names that templates have for a turn's reasoning: Qwen3 reads the first one, gpt-oss the second one."""


class TemplateError(InputError):
    """The chat template raises an error for a conversation; the message has the template's words."""


class Span(NamedTuple):
    """Characters of a rendered conversation; `stop` is exclusive."""

    start: int
    stop: int


def default_template() -> str:
    """Return the template for models without one: plain headers, and the end-of-sequence token after an answer."""
    return Path(__file__).with_name("chat_template.jinja").read_text()


def name_template(tokenizer: "PreTrainedTokenizerBase", given: str) -> None:
    """Note where a tokenizer's template was given: the value of `chat_template:`, a file or the text itself."""
    tokenizer.template_file = given if "{" not in given else "`chat_template:`"


def named_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return how messages name a tokenizer's template: the file that it was given in, or the model's folder."""
    return getattr(tokenizer, "template_file", None) or f"of {tokenizer.name_or_path or 'the model'}"


class ChatTemplate:
    """The chat template of a tokenizer.

    Args:
        tokenizer: with a chat template.
        **variables: of every rendering, unless a conversation has its own (`chat_template_kwargs`).
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", **variables: Any):
        if not tokenizer.chat_template:
            raise InputError("the model has no chat template; set its `chat_template:` in models.yaml to a Jinja file")
        self._tokenizer, self._variables = tokenizer, variables

    def render(self, messages: Sequence[Turn], arguments: Mapping[str, Any] | None = None, header: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: the turns.
            arguments: `tools` and `chat_template_kwargs` of the conversation, if it has any.
            header: whether to add the template's own generation prompt.

        Raises:
            TemplateError: the template rejects the conversation.
            TemplateLimitError: the template takes too long or too much memory.
        """
        arguments = arguments or {}
        variables = {**self._variables, **arguments.get("chat_template_kwargs", {})}
        if reserved := sorted(variables.keys() & self._reserved):
            raise TemplateError(f"chat_template_kwargs sets {', '.join(reserved)}, which is no variable of a template")

        def rendered() -> str:
            return str(
                self._tokenizer.apply_chat_template(
                    [_with_reasoning_names(turn) for turn in messages],
                    tools=arguments.get("tools"),
                    tokenize=False,
                    add_generation_prompt=header,
                    **variables,
                )
            )

        try:
            return LIMITS.run(rendered, named_template(self._tokenizer))
        except TemplateLimitError:
            raise
        except Exception as error:  # Jinja raises the errors of the template's author.
            raise TemplateError(
                f"the chat template rejects the conversation: {' '.join(str(error).split())}; correct the example, or "
                "set `chat_template:` of the model in models.yaml to a template that accepts it"
            ) from None

    def prompt(self, messages: Sequence[Turn], arguments: Mapping[str, Any] | None = None) -> str:
        """Return the text after which a model writes its answer: the generation prompt, and `missing_header`."""
        return self.render(messages, arguments, header=True) + self.missing_header

    @cached_property
    def missing_header(self) -> str:
        """What stands before an answer if the template ignores `add_generation_prompt`; else empty.

        White space alone is no header: in `[INST] question [/INST] answer` it belongs to the answer.
        """
        try:
            if self.render(_PROBE, header=True) != self.render(_PROBE):
                return ""
        except TemplateError:
            return ""
        header = self._header_before_answers([])
        return header if header.strip() else ""

    @cached_property
    def earlier_header(self) -> str:
        """What stands before an answer that is not the last one."""
        return self._header_before_answers(_PROBE)

    def _header_before_answers(self, following: Sequence[Turn]) -> str:
        """Return the common beginning of two renderings that differ in the answer, after the question."""
        try:
            before = self.render(_PROBE)
            texts = [self.render([*answered(word), *following]) for word in ("Apple", "zebra")]
        except TemplateError:
            return ""
        common = os.path.commonprefix(texts)
        return common.removeprefix(before) if common.startswith(before) else ""

    @cached_property
    def header(self) -> str:
        """What stands between a question and its answer, as far as generation prompts hold it, without white space."""
        try:
            prompt = self.prompt(_PROBE)
            return prompt[len(os.path.commonprefix([prompt, self.render(_PROBE)])) :].strip()
        except TemplateError:
            return ""

    @cached_property
    def end_of_answer(self) -> str:
        """What follows the text of a last answer, without white space at its end."""
        try:
            return self.render(answered("Apple")).rpartition("Apple")[2].rstrip()
        except TemplateError:
            return ""

    @cached_property
    def special(self) -> re.Pattern[str]:
        """Special tokens of the tokenizer, as text; longer ones first, as the tokenizer finds them."""
        names = {str(self._tokenizer.convert_ids_to_tokens(id_)) for id_ in special_ids(self._tokenizer)}
        return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name) or r"(?!)")

    @cached_property
    def names(self) -> frozenset[str]:
        """Words of the template's source: a variable that is not among them changes nothing."""
        return frozenset(re.findall(r"\w+", str(self._tokenizer.chat_template)))

    @cached_property
    def _reserved(self) -> frozenset[str]:
        """Arguments of `apply_chat_template` that are no variables."""
        return frozenset(inspect.signature(self._tokenizer.apply_chat_template).parameters)

    def locate(
        self, messages: Sequence[Turn], arguments: Mapping[str, Any], text: str, header: bool = False
    ) -> dict[int, tuple[int | None, int | None]] | None:
        """Return where the text of each turn begins and ends in the rendered conversation.

        The conversation is rendered again with a mark on both sides of each turn's text. An end is None if the
        template drops that part of the text. Returns None if the marks change what the template writes, or if it
        writes a turn twice.
        """
        for trim in (False, True):
            marked = [_marked(turn, number, trim) for number, turn in enumerate(messages)]
            found = self._positions(marked, arguments, text, header)
            if found is not None:
                return {int(name): (ends.get(""), ends.get("/")) for name, ends in found.items()}
        return None

    def locate_parts(
        self, messages: Sequence[Turn], arguments: Mapping[str, Any], text: str, part: re.Pattern[str], header: bool
    ) -> list[Span] | None:
        """Return where texts of turns and tools match `part`, for example special tokens, in the rendered conversation.

        A template's own tokens are not among them. Returns None if marks around them change what the template writes.
        """
        count = 0

        def mark(match: re.Match[str]) -> str:
            nonlocal count
            count += 1
            return f"\ufdd0{count}\ufdd1{match[0]}\ufdd0/{count}\ufdd1"

        marked = [_each_text(turn, lambda value: part.sub(mark, value)) for turn in messages]
        found = self._positions(marked, _each_text(dict(arguments), lambda value: part.sub(mark, value)), text, header)
        if found is None:
            return None
        return [Span(ends[""], ends["/"]) for ends in found.values() if len(ends) == 2]

    def _positions(
        self, marked: Sequence[Turn], arguments: Mapping[str, Any], text: str, header: bool
    ) -> dict[str, dict[str, int]] | None:
        """Return the position in `text` of each mark, by name and kind; None if they cannot be told."""
        try:
            rendered = self.prompt(marked, arguments) if header else self.render(marked, arguments)
        except TemplateError:
            return None
        found: dict[str, dict[str, int]] = {}
        pieces, end, length = [], 0, 0
        for match in _MARK.finditer(rendered):
            pieces.append(rendered[end : match.start()])
            length, end = length + len(pieces[-1]), match.end()
            kinds = found.setdefault(match[2], {})
            if match[1] in kinds:
                return None
            kinds[match[1]] = length
        return found if "".join(pieces) + rendered[end:] == text else None


def answered(answer: str, **fields: Any) -> list[Turn]:
    """Return a question with an answer."""
    return [*_PROBE, {"role": "assistant", "content": answer, **fields}]


def _with_reasoning_names(turn: Turn) -> Turn:
    """Return a turn with its reasoning under every name that templates have for it.

    transformers does this too, but not in its first versions of 5, and not for `reasoning`.
    """
    reasoning = turn.get("reasoning_content")
    return {**turn, **dict.fromkeys(REASONING_KEYS, reasoning)} if reasoning else turn


def _marked(turn: Turn, number: int, trim: bool) -> Turn:
    """Return a turn with marks around its text; with `trim` inside the white space around it."""
    content = turn["content"]
    core = content.strip() if trim else content
    if not core:
        return turn
    before, _, after = content.partition(core)
    return {**turn, "content": f"{before}\ufdd0{number}\ufdd1{core}\ufdd0/{number}\ufdd1{after}"}


def _each_text(value: Any, change: Any) -> Any:
    """Return a JSON value with `change` applied to the texts in it; names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each_text(item, change) for item in value]
    if isinstance(value, dict):
        # A role is a word of the template, not of the user.
        return {key: item if key in ("role", "type") else _each_text(item, change) for key, item in value.items()}
    return value
