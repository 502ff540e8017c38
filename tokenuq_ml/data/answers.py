"""Where the answers are in a rendered conversation, and whether the template renders what the row says.

An answer is what generation would write: everything after the generation prompt, up to the end of the turn.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenuq_ml.data.chat_template import ChatTemplate, Span
from tokenuq_ml.data.examples import Turn

RENDERED_EACH = 8
"""Answers of a conversation up to which the prompt of each is rendered. Longer conversations take a sample of as many,
so that the time is linear in the number of turns."""

_ANCHOR = 16
"""Characters of an answer that are searched for first."""

_TRAIN_LAST = (
    ", perhaps because the chat template ends earlier answers as it ends no last one; `train_on: last` of the dataset "
    "trains the last answer alone"
)

Locations = dict[int, tuple[int | None, int | None]]


@dataclass(frozen=True)
class Fault:
    """A turn that the template does not render as the row means it; `turn` counts from 0, None: the conversation."""

    turn: int | None
    reason: str
    detail: str


@dataclass
class RenderedConversation:
    """The text of a conversation, the spans of its trained answers by turn, and the turns that are rendered wrongly."""

    text: str
    answers: dict[int, Span] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def render_conversation(
    template: ChatTemplate, messages: Sequence[Turn], arguments: Mapping[str, Any], trained: Iterable[int]
) -> RenderedConversation:
    """Render a conversation and find the answers of the turns `trained`.

    Raises:
        TemplateError: the template rejects the conversation.
    """
    text = template.render(messages, arguments)
    located = template.locate(messages, arguments, text)
    finder = _AnswerFinder(template, messages, arguments, text, located)
    finder.find(list(trained))
    missing = list(missing_texts(messages, arguments, text, located))
    missing_turns = {fault.turn for fault in missing}
    others = [fault for fault in finder.faults if fault.turn not in missing_turns]
    return RenderedConversation(text, finder.answers, sorted([*missing, *others], key=lambda fault: fault.turn or 0))


class _AnswerFinder:
    """The search for the answers of one conversation."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Turn],
        arguments: Mapping[str, Any],
        text: str,
        located: Locations | None,
    ):
        self.template, self.messages, self.arguments, self.text = template, messages, arguments, text
        self.located = located or {}
        self.answers: dict[int, Span] = {}
        self.faults: list[Fault] = []

    def find(self, turns: list[int]) -> None:
        """Fill `answers` and `faults`."""
        if len(turns) <= RENDERED_EACH:
            for turn in turns:
                self._by_prompt(turn)
            return
        step = (len(turns) - 1) / (RENDERED_EACH - 1)
        sample = sorted({turns[round(step * number)] for number in range(RENDERED_EACH)})
        before: dict[str, set[str]] = {}
        after: dict[str, set[str]] = {}
        for turn in [*sample, *(turn for turn in turns if turn not in set(sample))]:
            if turn not in sample and self._by_borders(turn, before, after):
                continue
            self._by_prompt(turn)
            if turn in self.answers:
                self._learn(turn, before, after)
        self.answers = dict(sorted(self.answers.items()))

    def _by_prompt(self, turn: int) -> None:
        """Find an answer from its generation prompt, and from the conversation up to it."""
        prompt = self.template.prompt(self.messages[:turn], self.arguments)
        is_last = turn == len(self.messages) - 1
        up_to = self.text if is_last else self.template.render(self.messages[: turn + 1], self.arguments)
        up_to = up_to.rstrip()
        if self.text.startswith(prompt) and self.text.startswith(up_to):
            self.answers[turn] = Span(len(prompt), max(len(prompt), len(up_to)))
        else:
            self._by_text(turn, prompt, up_to)

    def _by_text(self, turn: int, prompt: str, up_to: str) -> None:
        """Find an answer that the template renders in another way than after its prompt, from its own text."""
        text, before = self.text, self.template.render(self.messages[:turn], self.arguments)
        continues = text.startswith(prompt)
        same_context = continues or text.startswith(before)
        if not same_context:
            self._fault(
                turn,
                "other context",
                "the chat template changes a turn before it when more turns follow, so that training has another "
                "context than generation",
            )
        elif not continues and not up_to.startswith(prompt):
            rest = prompt.removeprefix(before).removeprefix(self.template.earlier_header)
            self._fault(
                turn,
                "prompt not continued",
                f"the generation prompt ends in {rest!r}, which the rendered answer does not have",
            )
        start, stop = self.located.get(turn, (None, None))
        if continues:
            start = len(prompt)
        elif same_context and text.startswith(self.template.earlier_header, len(before)):
            # A template may leave out its own think block in earlier turns, and generation prompts hold it.
            start = len(before) + len(self.template.earlier_header)
        alone = up_to.removeprefix(prompt if continues else before)
        end = None if start is None else self._end_of_turn(start, stop, alone)
        if start is None or end is None:
            remedy = "" if turn == len(self.messages) - 1 else _TRAIN_LAST
            detail = f"the answer or its end cannot be found in the rendered conversation{remedy}"
            self._fault(turn, "answer not found", detail)
        else:
            self.answers[turn] = Span(start, end)

    def _end_of_turn(self, start: int, stop: int | None, alone: str) -> int | None:
        """Return where a turn ends; None if the template's end of turn does not follow its text.

        Args:
            start: where the answer begins.
            stop: where its text ends, if that is known.
            alone: the turn as the template renders it if it is the last one.
        """
        text, end = self.text, self.template.end_of_answer
        least = max((stop or start) - start, 1) + len(end)
        # The longest end of the turn that the answer begins with: tool calls may follow the text.
        first = text[start : start + min(least, _ANCHOR)]
        place = alone.find(first)
        while 0 <= place <= len(alone) - least:
            if text.startswith(alone[place:], start):
                return start + len(alone) - place
            place = alone.find(first, place + 1)
        while stop is not None and stop < len(text):
            # The end of an earlier turn may be the beginning of a last one's: Phi-3 ends the text with another token.
            common = os.path.commonprefix([end, text[stop : stop + len(end)]])
            complete = [match.end() for match in self.template.special.finditer(end) if match.end() <= len(common)]
            if common == end or complete:
                return stop + (len(end) if common == end else complete[-1])
            stop = stop + 1 if text[stop].isspace() else None
        return None

    def _fault(self, turn: int, reason: str, detail: str) -> None:
        self.faults.append(Fault(turn, reason, detail))

    # Long conversations: what stands between a turn's text and an answer repeats.

    def _learn(self, turn: int, before: dict[str, set[str]], after: dict[str, set[str]]) -> None:
        """Remember what stands between an answer and the texts of its neighbours."""
        span, (start, stop) = self.answers[turn], self._neighbours(turn)
        if start is not None and start <= span.start:
            before.setdefault(self.messages[turn - 1]["role"], set()).add(self.text[start : span.start])
        if stop is not None and span.stop <= stop:
            after.setdefault(self.messages[turn + 1]["role"], set()).add(self.text[span.stop : stop])

    def _by_borders(self, turn: int, before: dict[str, set[str]], after: dict[str, set[str]]) -> bool:
        """Find an answer by the same borders as another's; return whether exactly one fits on either side."""
        start, stop = self._neighbours(turn)
        own_start, own_stop = self.located.get(turn, (None, None))
        if start is None or stop is None or own_start is None or own_stop is None:
            return False
        heads = before.get(self.messages[turn - 1]["role"], ())
        tails = after.get(self.messages[turn + 1]["role"], ())
        starts = [start + len(head) for head in heads if self.text.startswith(head, start)]
        stops = [stop - len(tail) for tail in tails if self.text.startswith(tail, stop - len(tail))]
        starts = [each for each in starts if each <= own_start]
        stops = [each for each in stops if each >= own_stop]
        if not starts or not stops:
            return False
        # The longest header: a shorter one is its beginning.
        self.answers[turn] = Span(max(starts), min(stops))
        return True

    def _neighbours(self, turn: int) -> tuple[int | None, int | None]:
        """Return where the text of the turn before ends, and where that of the turn after begins."""
        return self.located.get(turn - 1, (None, None))[1], self.located.get(turn + 1, (None, None))[0]


def missing_texts(
    messages: Sequence[Turn], arguments: Mapping[str, Any], text: str, located: Locations | None
) -> Iterable[Fault]:
    """Yield the turns of which the rendered conversation lacks a text, a tool call or the reasoning.

    Args:
        messages: the turns.
        arguments: `tools` of the conversation, if it has any.
        text: the rendered conversation.
        located: where `ChatTemplate.locate` finds each turn in it.
    """
    end = 0
    for number, turn in enumerate(messages):
        start, stop = (located or {}).get(number, (None, None))
        following = (located or {}).get(number + 1, (None, None))[0]
        region = text[end : len(text) if following is None else following]
        lacking = []
        # Between both marks a template may still change the text.
        if not _occurs(turn["content"], region if start is None or stop is None else text[start:stop]):
            lacking.append("text")
        if not _occurs(turn.get("reasoning_content") or "", region):
            lacking.append("reasoning_content")
        if not all(_is_called(call, region) for call in turn.get("tool_calls") or ()):
            lacking.append("tool_calls")
        if lacking:
            what = " and ".join(lacking)
            yield Fault(
                number,
                "text not rendered",
                f"the chat template leaves out the {turn['role']}'s {what}, or a part of it",
            )
        end = end if stop is None else stop
    names = [_function(tool).get("name") for tool in arguments.get("tools") or ()]
    if absent := [name for name in names if isinstance(name, str) and name not in text]:
        yield Fault(None, "text not rendered", f"the chat template leaves out the tools {', '.join(absent)}")


def _occurs(part: str, text: str) -> bool:
    """Return whether a text contains another, ignoring white space."""
    return part in text or "".join(part.split()) in "".join(text.split())


def _is_called(call: Any, text: str) -> bool:
    """Return whether a rendered turn has a tool call: the function's name, and every value of its arguments."""
    function = _function(call)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return _occurs(arguments, text)
    return all(_value_occurs(value, text) for value in [function.get("name"), *_leaves(arguments)])


def _value_occurs(value: Any, text: str) -> bool:
    if not isinstance(value, str):
        # Templates write true, True or 1.0; the call is compared by its texts and integers.
        return not isinstance(value, int) or isinstance(value, bool) or str(value) in text
    return any(
        _occurs(form, text) for form in (value, *(json.dumps(value, ensure_ascii=x)[1:-1] for x in (False, True)))
    )


def _function(tool: Any) -> dict[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, dict) else {}
    return function if isinstance(function, dict) else {}


def _leaves(value: Any) -> Iterable[Any]:
    """Yield the values and the names of fields in a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
