"""Chat templates that users have: each answer is trained as it is generated, or a sentence says why not.

Masks are compared with plain transformers: with the author's own `{% generation %}` marks, or with the ids of the
generation prompt followed by those of the answer.
"""

import json

import pytest

from tests.support.chat_templates import LATE_SYSTEM, PHI_3, TRIMMED_TOOLS
from tests.support.model_folders import folder_model, folder_spec, run_conversion
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tests.support.tokenizing import examples_of, tokenize, tokens_of, trained_texts, turns
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.tokenization import ConversationTokenizer, prompt_ids
from tokenuq_ml.errors import InputError

HEADER_ENDS_IN_SPACE = (
    "{% for m in messages %}{% if m.role=='assistant' %}{{ 'Answer: ' + m.content + eos_token + '\n' }}"
    "{% else %}{{ 'Question: ' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Answer: ' }}{% endif %}"
)
NO_GENERATION_PROMPT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role=='assistant' %}{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role=='user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""CHATML with its author's marks: what plain transformers trains of the same text."""


def marked_mask(messages):
    """The mask of `{% generation %}`, by plain transformers."""
    made = tiny_tokenizer(chat_template=MARKED).apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    return made["input_ids"], [bool(trained) for trained in made["assistant_masks"]]


@pytest.mark.parametrize("template", [CHATML, NO_GENERATION_PROMPT, MARKED], ids=["chatml", "no_prompt", "marked"])
@pytest.mark.parametrize(
    "messages",
    [
        turns("How many apples?", "12 apples."),
        turns("assistant", "user", "assistant", "assistant", system="user"),
        turns(*(f"{word} {n}" for n in range(25) for word in ("The price?", "3 dollars"))),
    ],
    ids=["one", "several", "many"],
)
def test_masks_are_those_of_the_authors_marks(template, messages):
    _, tokens = tokens_of(template, messages)
    assert (tokens.input_ids, tokens.response_mask) == marked_mask(messages) and not tokens.faults


def test_header_ends_in_space(tmp_path):
    """Before: only the end of the turn was trained, because ` positive` begins in the header."""
    answers = ("positive", "negative", "neutral")
    rows = [turns(f"Sentiment of review {n} with some words?", answers[n % 3]) for n in range(60)]
    made = tokenize(tmp_path, HEADER_ENDS_IN_SPACE, examples_of(rows))
    tokenizer = tiny_tokenizer(chat_template=HEADER_ENDS_IN_SPACE)
    for row, messages in zip(made.table.iter_rows(named=True), rows, strict=True):
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
        answer = tokenizer(messages[1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        ending = tokenizer("\n", add_special_tokens=False)["input_ids"]
        assert row["input_ids"] == prompt + answer + ending
        assert row["response_mask"] == [False] * len(prompt) + [True] * len(answer) + [False]


def test_no_generation_prompt(tmp_path):
    """Before: the header was trained in every turn, and generation began without it."""
    rows = [turns(f"Q{n}", f"A{n}") for n in range(60)]
    made = tokenize(tmp_path, NO_GENERATION_PROMPT, examples_of(rows))
    for row, messages in zip(made.table.iter_rows(named=True), rows, strict=True):
        assert (row["input_ids"], row["response_mask"]) == marked_mask(messages)
    tokenizer = tiny_tokenizer(chat_template=NO_GENERATION_PROMPT)
    expected = tiny_tokenizer().apply_chat_template(rows[0][:1], add_generation_prompt=True)["input_ids"]
    assert prompt_ids(tokenizer, rows[0][:1]) == expected


def test_no_generation_prompt_is_named_at_conversion(tmp_path):
    folder_model(tmp_path / "in", chat_template=NO_GENERATION_PROMPT)
    reporter, result = run_conversion(folder_spec(tmp_path / "in"), tmp_path)
    note = result.metrics["chat_template_notes"]
    assert note == (
        r"it ignores add_generation_prompt: the header '<|im_start|>assistant\n' is added to prompts, and not trained"
    )
    assert any(note in line for line in reporter.lines)


def test_template_drops_system(tmp_path):
    """Before: the system turn vanished."""
    rows = [turns(f"Q{n}", f"Arr {n}", system="Answer as a pirate.") for n in range(59)] + [turns("Q", "Arr")]
    words = (
        r"model m, dataset d: 59 of 60 examples are not rendered as their rows say; the first: example d/000000: "
        r"turn 1: the chat template leaves out the system's text, .*`template_drops:`"
    )
    with pytest.raises(InputError, match=words):
        tokenize(tmp_path / "refuse", DROPS_SYSTEM, examples_of(rows))
    with pytest.raises(InputError, match="split 'validation' has no response token"):
        tokenize(tmp_path / "none", DROPS_SYSTEM, examples_of(rows), template_drops="reject")
    allowed = tokenize(tmp_path / "allow", DROPS_SYSTEM, examples_of(rows), template_drops="allow")
    assert len(allowed.table) == 60 and allowed.result.metrics["rendered_incompletely_d"] == 59
    assert any("59 of 60 examples are trained as rendered" in line for line in allowed.lines)
    few = [row if n % 10 == 9 else row[1:] for n, row in enumerate(rows[:59])]
    rejected = tokenize(tmp_path / "reject", DROPS_SYSTEM, examples_of(few), template_drops="reject")
    assert rejected.rejected["example_id"].to_list() == [f"d/{n:06d}" for n in range(9, 59, 10)]
    assert set(rejected.rejected["reason"]) == {"text not rendered"} and len(rejected.table) == 54


def test_phi_3_ends_a_text_with_another_token():
    tokenizer = tiny_tokenizer(chat_template=PHI_3)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|user|>", "<|assistant|>"]})
    messages = turns("One?", "First.", "Two?", "Second.")
    (tokens,) = ConversationTokenizer(tokenizer).tokenize([Example("d/0", "train", messages)])
    assert not tokens.faults and tokens.input_ids == tokenizer.apply_chat_template(messages)["input_ids"]
    trained = trained_texts(tokenizer, tokens.input_ids, tokens.response_mask)
    assert trained == ["First.<|end|>", "Second.<|end|>\n<|im_end|>"]


def test_a_template_that_moves_the_system_turn_is_refused_for_several_turns():
    """Its earlier answers would be trained without the system's text before them."""
    _, one = tokens_of(LATE_SYSTEM, turns("Q", "A", system="S."))
    assert not one.faults
    _, two = tokens_of(LATE_SYSTEM, turns("Q", "A", "Q", "B", system="S."))
    assert [(fault.turn, fault.reason) for fault in two.faults] == [(2, "other context")]


def test_a_row_in_which_the_template_raises_is_one_rejected_row(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    rows = [turns("Q", f"A{n}") for n in range(12)]
    rows[3][1]["tool_calls"] = [call, call]
    made = tokenize(tmp_path / "one", TRIMMED_TOOLS, examples_of(rows))
    ((example_id, reason, detail),) = made.rejected.select("example_id", "reason", "detail").rows()
    assert (example_id, reason) == ("d/000003", "template error") and "one tool call at a time" in detail
    assert len(made.table) == 11 and any("1 of 12 examples are left out" in line for line in made.lines)
    for row in rows:
        row[1]["tool_calls"] = [call, call]
    with pytest.raises(InputError, match=r"no example can be tokenised; the first: example d/000000: .*one tool call"):
        tokenize(tmp_path / "all", TRIMMED_TOOLS, examples_of(rows))


def test_max_length_drops_most(tmp_path):
    """Before: one line, and a study of 30% of the sizes asked for."""
    rows = [turns(f"{'word ' * 70 if n % 10 < 7 else ''}Q{n}", f"A{n}") for n in range(60)]
    full = tokenize(tmp_path / "full", CHATML, examples_of(rows))
    # The answer and its end, without the line break after it.
    lengths = sorted(len(ids) - 1 for ids in full.table["input_ids"].to_list())
    words = (
        rf"dataset d: 42 of 60 examples lose response tokens .*max_length 64, and 42 of them are left out; a "
        rf"max_length of {lengths[56]} keeps all of 95% and {lengths[59]} keeps all of 99%\. More than .*0\.05"
    )
    with pytest.raises(InputError, match=words):
        tokenize(tmp_path / "fails", CHATML, examples_of(rows), max_length=64)
    made = tokenize(tmp_path / "allowed", CHATML, examples_of(rows), max_length=64, max_truncated_share=0.7)
    assert len(made.table) == 18 and set(made.rejected["reason"]) == {"truncated"} and len(made.rejected) == 42
    assert made.result.metrics["losing_tokens_d"] == 42 and any("42 of 60 examples lose" in line for line in made.lines)
    kept = tokenize(tmp_path / "kept", CHATML, examples_of(rows), max_length=lengths[-1])
    assert len(kept.table) == 60 and "losing_tokens_d" not in kept.result.metrics


def test_examples_that_lose_their_end_of_turn_are_cut_or_rejected(tmp_path):
    rows = examples_of([turns("Q", "word " * (60 if n == 1 else 2)) for n in range(30)])
    made = tokenize(tmp_path / "right", CHATML, rows, max_length=40)
    assert len(made.table) == 30 and made.result.metrics["losing_tokens_d"] == 1 and made.rejected.is_empty()
    rejecting = tokenize(tmp_path / "reject", CHATML, rows, max_length=40, truncation="reject")
    assert rejecting.rejected["example_id"].to_list() == ["d/000001"] and len(rejecting.table) == 29


def test_turn_weights_become_token_weights(tmp_path):
    rows = examples_of([turns("Q", "One", "Q", "Two")] * 12, turn_weights=[0, 0.5, 0, 1])
    made = tokenize(tmp_path / "half", CHATML, rows)
    row = made.table.row(0, named=True)
    by_turn = [weight for weight, trained in zip(row["token_weight"], row["response_mask"], strict=True) if trained]
    ids, mask = marked_mask(rows[0].messages)
    assert (row["input_ids"], row["response_mask"]) == (ids, mask)
    assert by_turn == sorted(by_turn) and set(by_turn) == {0.5, 1.0}
    last = tokenize(
        tmp_path / "last", CHATML, examples_of([turns("Q", "One", "Q", "Two")] * 12, turn_weights=[0, 0, 0, 1])
    )
    row = last.table.row(0, named=True)
    assert trained_texts(tiny_tokenizer(), row["input_ids"], row["response_mask"]) == ["Two<|im_end|>"]
    assert row["token_weight"] is None
    assert json.dumps(last.result.metrics)
