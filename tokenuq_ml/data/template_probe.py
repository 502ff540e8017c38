"""Check of a chat template on probe conversations, before a model is stored or trained.

Required: an answer is trained from its first character to its end of turn, and nothing before it; the ids of the
generation prompt are a prefix of the ids that are trained. What else a template does is named in `notes`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenuq_ml.data.examples import Example, Turn
from tokenuq_ml.data.token_categories import special_ids
from tokenuq_ml.data.tokenization import ConversationTokenizer, ConversationTokens, describe
from tokenuq_ml.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUESTION = {"role": "user", "content": "Which fruit is red?"}
_ANSWER = {"role": "assistant", "content": "Apples are red."}
_REASONING = "They look red."
_THINKING = {"role": "assistant", "content": f"<think>\n{_REASONING}\n</think>\n\n{_ANSWER['content']}"}
_READS_REASONING = re.compile(r"reasoning_content|message\.thinking|['\"]thinking['\"]")
_SEVERAL = [_QUESTION, _ANSWER, {"role": "user", "content": "And yellow?"}, {"role": "assistant", "content": "Pears."}]


@dataclass(frozen=True)
class TemplateReport:
    """What the probe found."""

    end_of_turn: int | None
    """The special token that ends an answer; None if an answer ends with plain text."""
    notes: tuple[str, ...]
    """What the template does that a user should know, as sentences."""


def probe_template(tokenizer: "PreTrainedTokenizerBase") -> TemplateReport:
    """Check the chat template of a tokenizer.

    Raises:
        InputError: there is none, or an answer is not trained as it is generated. A template whose generation prompt
            opens a think block passes: rows decide whether answers have one.
    """
    probe, notes = _Probe(tokenizer, {}), []
    answer, plain = _ANSWER, probe.fault([_QUESTION, _ANSWER])
    if plain is not None:
        if probe.reason([_QUESTION, _ANSWER]) != "prompt not continued":
            raise InputError(plain if "models.yaml" in plain else plain + _REMEDY)
        notes.append(f"answers without a think block are not trained as they are generated: {plain}")
        answer = _ANSWER if probe.fault([_QUESTION, _THINKING]) else _THINKING
    tokens = probe.tokens([_QUESTION, answer])
    last = [id_ for id_, trained in zip(tokens.input_ids, tokens.response_mask, strict=True) if trained][-1]
    notes += _notes(tokenizer, probe, answer)
    return TemplateReport(last if last in special_ids(tokenizer) else None, tuple(notes))


class _Probe:
    """Probe conversations, rendered with some variables of the template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", variables: dict[str, Any]):
        self.tokenizer = tokenizer
        self.conversations = ConversationTokenizer(tokenizer, **variables)

    def tokens(self, messages: list[Turn]) -> ConversationTokens:
        """Return the tokens of a conversation."""
        return self.conversations.tokenize([Example("probe", "", messages)])[0]

    def reason(self, messages: list[Turn]) -> str | None:
        """Return the kind of what the tokenizer finds wrong with a conversation; None if it finds nothing."""
        return next((fault.reason for fault in self.tokens(messages).faults), None)

    def fault(self, messages: list[Turn]) -> str | None:
        """Return what is wrong with the last answer of a conversation; None if it is trained as it is generated."""
        tokens = self.tokens(messages)
        if tokens.faults:
            return _shown(describe(tokens.faults[0]))
        prompt = self.conversations.prompt_ids(messages[:-1])
        if tokens.input_ids[: len(prompt)] != prompt:
            return "the ids of the generation prompt are no prefix of the ids that are trained"
        mask = tokens.response_mask
        if any(mask[: len(prompt)]) and len(messages) == 2:
            return "tokens before the answer would be trained"
        answer = self.text(tokens.input_ids[len(prompt) : tokens.needed])
        if not all(mask[len(prompt) : tokens.needed]) or tokens.needed <= len(prompt):
            return "the answer would not be trained"
        said = messages[-1]["content"].rpartition("</think>")[2].strip()
        # A tokenizer may lose characters that its vocabulary lacks, in the answer as in the same text alone.
        if said not in answer and self.text(self.tokenizer(said, add_special_tokens=False)["input_ids"]) not in answer:
            return "the beginning of the answer would not be trained"
        return None

    def added_before(self, messages: list[Turn]) -> str:
        """Return what the template writes between the generation prompt and the last answer, and is trained."""
        tokens, prompt = self.tokens(messages), self.conversations.prompt_ids(messages[:-1])
        answer, said = self.text(tokens.input_ids[len(prompt) : tokens.needed]), messages[-1]["content"]
        # A tokenizer may lose characters that its vocabulary lacks.
        known = said if said in answer else self.text(self.tokenizer(said, add_special_tokens=False)["input_ids"])
        return answer.partition(known)[0]

    def text(self, ids: list[int]) -> str:
        """Return the text of tokens."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


_REMEDY = "; set `chat_template:` of the model in models.yaml to one that renders answers as they are generated"


def _notes(tokenizer: "PreTrainedTokenizerBase", probe: _Probe, answer: Turn) -> Iterator[str]:
    """Yield what the template does with other conversations."""
    if header := probe.conversations.template.missing_header:
        yield f"it ignores add_generation_prompt: the header {header!r} is added to prompts, and not trained"
    if probe.fault([_QUESTION, _ANSWER]) is None and (added := probe.added_before([_QUESTION, _ANSWER]).strip()):
        yield f"it writes {added!r} before an answer, which generation prompts do not hold: trained"
    bos = tokenizer.bos_token_id
    begins = bos is not None and tokenizer("x")["input_ids"][:1] == [bos]
    if begins and probe.tokens([_QUESTION, answer]).input_ids[:1] != [bos]:
        yield f"it does not begin with {tokenizer.bos_token!r}, as the tokenizer's plain texts do: nor do prompts"
    template = str(tokenizer.chat_template)
    if "strftime_now" in template:
        yield "it reads today's date (strftime_now): unless a row sets it, tokens and prompts change from day to day"
    others: dict[str, list[Turn]] = {
        "system turns": [{"role": "system", "content": "Be brief and clear."}, _QUESTION, answer],
        "think blocks in answers": [_QUESTION, _THINKING],
    }
    if answer is _ANSWER and probe.fault([_QUESTION, _ANSWER]) is None:
        others["conversations of several turns"] = _SEVERAL
        if probe.fault(others["system turns"]) is None:
            others["several turns after a system turn"] = [others["system turns"][0], *_SEVERAL]
    if _READS_REASONING.search(template):
        others["reasoning_content"] = [_QUESTION, {**_ANSWER, "reasoning_content": _REASONING}]
    for what, messages in others.items():
        if (fault := probe.fault(messages)) is not None:
            yield f"{what}: {fault}"
    for value in (True, False) if "enable_thinking" in template else ():
        fault = _Probe(tokenizer, {"enable_thinking": value}).fault([_QUESTION, _ANSWER])
        if fault is not None:
            yield f"enable_thinking: {str(value).lower()}: {fault}"


def _shown(words: str) -> str:
    """Return the words without the number of a turn, which a reader does not know."""
    return words.partition(": ")[2] if words.startswith("turn ") else words
