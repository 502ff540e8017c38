"""What the probe of a chat template finds: the end of a turn, notes, and templates that it rejects."""

import pytest
from tokenizers import processors

from tests.support.chat_templates import GPT_OSS, LATE_SYSTEM, OPENS_THINK, QWEN3, TRIMMED_TOOLS
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.data.template_probe import probe_template
from tokenuq_ml.data.tokenization import default_template
from tokenuq_ml.errors import InputError


@pytest.mark.parametrize("template", [CHATML, TRIMMED_TOOLS, default_template()])
def test_usual_templates_need_no_note(template):
    report = probe_template(tiny_tokenizer(chat_template=template))
    assert report.notes == () and report.end_of_turn == 1


@pytest.mark.parametrize(
    ("template", "note"),
    [
        (CHATML.replace("message in messages", "message in messages if message.role != 'system'"), "system turns: the"),
        (CHATML.replace("message in messages", "message in messages[-2:]"), "conversations of several turns: the chat"),
        (LATE_SYSTEM, "several turns after a system turn: the chat template changes a turn before it"),
        (OPENS_THINK, "answers without a think block are not trained as they are generated: the generation prompt"),
        (QWEN3, r"it writes '<think>\n\n</think>' before an answer, which generation prompts do not hold: trained"),
        (
            CHATML.replace("+ message['content']", "+ message['content'].split('</think>')[-1]"),
            "think blocks in answers",
        ),
        ("{{ strftime_now('%Y') }}" + CHATML, "it reads today's date (strftime_now): unless a row sets it, tokens and"),
        (GPT_OSS, "several turns after a system turn: the answer or its end cannot be found"),
    ],
    ids=["drops_system", "last_turns", "late_system", "opens_think", "empty_block", "cuts_think", "date", "gpt_oss"],
)
def test_what_a_template_does_otherwise_is_noted(template, note):
    notes = probe_template(tiny_tokenizer(chat_template=template)).notes
    assert any(each.startswith(note) for each in notes), notes


def test_a_missing_beginning_of_sequence_is_noted():
    tokenizer = tiny_tokenizer(chat_template=CHATML.replace("<|im_start|>", ""))
    frame = processors.TemplateProcessing("<|im_start|> $0", special_tokens=[("<|im_start|>", 0)])
    tokenizer.backend_tokenizer.post_processor = frame
    (note,) = probe_template(tokenizer).notes
    assert note == "it does not begin with '<|im_start|>', as the tokenizer's plain texts do: nor do prompts"
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert probe_template(tokenizer).notes == ()


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "leaves out the user's text"),
        (CHATML.replace("message['content']", "message['content'] | upper"), "leaves out the user's text"),
        (CHATML.replace("message in messages", "message in messages[:1]"), "leaves out the assistant's text"),
    ],
    ids=["roles", "changed", "no_answer"],
)
def test_templates_that_lose_text_are_rejected(template, words):
    with pytest.raises(InputError, match=rf"^the chat template {words}.*; set `chat_template:` of the model"):
        probe_template(tiny_tokenizer(chat_template=template))
