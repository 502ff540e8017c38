"""Tokens after the maximum length, and what tokenisation rejects."""

import pytest

from tests.support.chat_conversations import FORGETFUL, GEMMA, LONG, SHORT, spoken, with_template
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.data.tokenization import prompt_ids, tokenize_example
from tokenuq_ml.errors import InputError

pytestmark = pytest.mark.usefixtures("restore_template")


def test_tokens_after_the_maximum_are_cut(tokenizer):
    whole = tokenize_example(tokenizer, LONG, 999)
    length = len(whole.input_ids)
    assert not tokenize_example(tokenizer, LONG, length).truncated
    for cut in (length - 1, 5, 1):
        tokens = tokenize_example(tokenizer, LONG, cut)
        assert tokens == (whole.input_ids[:cut], whole.response_mask[:cut], True)


def test_the_tokenizer_is_unchanged_afterwards():
    tokenizer = tiny_tokenizer(trim_offsets=True)
    before = tokenizer.backend_tokenizer.to_str()
    tokenize_example(tokenizer, LONG, 999)
    with pytest.raises(InputError):
        tokenize_example(with_template(tokenizer, GEMMA), LONG, 999)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_a_missing_chat_template_says_what_to_do(tokenizer):
    with_template(tokenizer, None)
    for call in (lambda: tokenize_example(tokenizer, SHORT, 99), lambda: prompt_ids(tokenizer, SHORT[:1])):
        with pytest.raises(InputError, match=r"no chat template; set its `chat_template:` in models\.yaml"):
            call()


def test_a_template_that_rewrites_earlier_turns_is_rejected(tokenizer):
    with_template(tokenizer, FORGETFUL)
    assert spoken(tokenizer, tokenize_example(tokenizer, SHORT, 999)) == ["12 apples.<|im_end|>"]
    with pytest.raises(InputError, match=r"turn 2: the chat template leaves out the assistant's text"):
        tokenize_example(tokenizer, LONG[1:], 999)


def test_the_message_of_a_template_that_rejects_a_role_is_shown(tokenizer):
    with pytest.raises(InputError, match=r"rejects the conversation: System role not supported; correct"):
        tokenize_example(with_template(tokenizer, GEMMA), LONG, 999)


def test_a_prompt_that_loses_a_turn_is_rejected(tokenizer):
    with_template(tokenizer, CHATML.replace("for message in messages", "for message in messages[-1:]"))
    with pytest.raises(
        InputError, match="turn 1: the chat template leaves out the system's text, or a part of it; corr"
    ):
        prompt_ids(tokenizer, LONG[:2])
    assert prompt_ids(tokenizer, SHORT[:1])


def test_a_slow_tokenizer_is_rejected(tokenizer):
    class Slow:
        is_fast, chat_template, apply_chat_template = False, CHATML, tokenizer.apply_chat_template

    with pytest.raises(InputError, match="Slow returns no character offsets"):
        tokenize_example(Slow(), SHORT, 99)
