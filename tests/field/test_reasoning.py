"""Reasoning, think blocks and tool calls under users' chat templates: trained as generated, or refused by name.

Ids are compared with those that plain transformers renders.
"""

import pytest

from tests.support.chat_templates import GPT_OSS, GPT_OSS_TOKENS, OPENS_THINK, QWEN3, R1_DISTILL
from tests.support.model_folders import folder_model, folder_spec, run_conversion
from tests.support.tiny_datasets import parse_row
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tests.support.tokenizing import examples_of, tokenize, tokens_of, trained_texts, turns
from tokenuq_ml.data.chat_template import ChatTemplate
from tokenuq_ml.data.tokenization import tokenize_example
from tokenuq_ml.errors import InputError


def reasoned(question: str, answer: str, reasoning: str, key: str = "reasoning_content") -> list[dict]:
    return [*turns(question), {"role": "assistant", "content": answer, key: reasoning}]


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("template", [QWEN3, GPT_OSS], ids=["reads reasoning_content", "reads thinking"])
def test_a_template_gets_the_reasoning_under_the_name_that_it_reads(template, key):
    """Before: only `reasoning_content` was passed, whatever the row and the template call it."""
    parsed = parse_row("messages", {"messages": reasoned("Q", "A", "Let me think.", key)})
    tokenizer, tokens = tokens_of(template, parsed.messages, special=GPT_OSS_TOKENS)
    theirs = "thinking" if template is GPT_OSS else "reasoning_content"
    messages = reasoned("Q", "A", "Let me think.", theirs)
    assert not tokens.faults and tokens.input_ids == tokenizer.apply_chat_template(messages)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert tokens.response_mask.index(True) == len(prompt)
    assert "Let me think." in trained_texts(tokenizer, tokens.input_ids, tokens.response_mask)[0]


def test_a_template_that_reads_another_name_gets_the_reasoning():
    template = CHATML.replace("+ message['content']", "+ (message.reasoning or '') + message['content']")
    tokenizer, tokens = tokens_of(template, reasoned("Q", "A", "Hm. "))
    assert not tokens.faults
    assert trained_texts(tokenizer, tokens.input_ids, tokens.response_mask) == ["Hm. A<|im_end|>"]


def test_the_names_of_reasoning_do_not_depend_on_the_version_of_transformers(monkeypatch):
    """transformers 5.0 passes a turn as it is; later versions add names."""
    tokenizer, given = tiny_tokenizer(), []
    monkeypatch.setattr(tokenizer, "apply_chat_template", lambda turns, tools, tokenize, **_: given.extend(turns) or "")
    ChatTemplate(tokenizer).render(reasoned("Q", "A", "Hm."))
    names = ("reasoning_content", "thinking", "reasoning")
    assert given == [turns("Q")[0], {"role": "assistant", "content": "A", **dict.fromkeys(names, "Hm.")}]


def test_gpt_oss_trains_calls_with_reasoning_and_refuses_what_its_template_drops():
    call = [{"type": "function", "function": {"name": "weather", "arguments": {"town": 0}}}]
    calling = reasoned("Weather?", "", "Look it up.")
    calling[1]["tool_calls"] = call
    tokenizer, tokens = tokens_of(GPT_OSS, calling, special=GPT_OSS_TOKENS)
    assert not tokens.faults
    assert trained_texts(tokenizer, tokens.input_ids, tokens.response_mask) == [
        "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant to=functions.weather<|channel|>commentary "
        'json<|message|>{"town": 0}<|call|>'
    ]
    refused = {
        "the chat template leaves out the assistant's reasoning_content": [
            *reasoned("Q", "A", "Hm."),
            *reasoned("Q2", "A2", "Hm."),
        ],
        "`train_on: last` of the dataset trains the last answer alone": turns("Q", "A", "Q2", "A2"),
        "Cannot pass both content and thinking": [calling[0], {**calling[1], "content": "Wait."}],
    }
    for words, messages in refused.items():
        _, tokens = tokens_of(GPT_OSS, messages, special=GPT_OSS_TOKENS)
        assert words in tokens.faults[0].detail
    last = [0.0, 0.0, 0.0, 1.0]
    tokenizer, tokens = tokens_of(GPT_OSS, turns("Q", "A", "Q2", "A2"), special=GPT_OSS_TOKENS, turn_weights=last)
    trained = trained_texts(tokenizer, tokens.input_ids, tokens.response_mask)
    assert not tokens.faults and trained == ["<|channel|>final<|message|>A2<|return|>"]


def test_generation_prompt_opens_think(tmp_path):
    """Before: the model was refused at conversion, whatever the data. The text after the opened block is trained."""
    rows = [turns(f"{n}+1?", f"<think>\nadd one\n</think>\n\n{n + 1}") for n in range(60)]
    made = tokenize(tmp_path, OPENS_THINK, examples_of(rows))
    tokenizer = tiny_tokenizer(chat_template=OPENS_THINK)
    for row, n in zip(made.table.iter_rows(named=True), range(60), strict=True):
        prompt = tokenizer.apply_chat_template(rows[n][:1], add_generation_prompt=True)["input_ids"]
        assert row["input_ids"][: len(prompt)] == prompt and not any(row["response_mask"][: len(prompt)])
        trained = trained_texts(tokenizer, row["input_ids"], row["response_mask"])
        assert trained == [f"add one\n</think>\n\n{n + 1}<|im_end|>"]


def test_an_answer_without_the_think_block_that_its_prompt_opens_is_refused(tmp_path):
    rows = examples_of([turns("1+1?", "2"), *(turns(f"{n}+1?", f"<think>\nadd\n</think>\n\n{n}") for n in range(59))])
    words = r"1 of 60 examples .*example d/000000: turn 2: the generation prompt ends in '<think>\\n', which the rend"
    with pytest.raises(InputError, match=words):
        tokenize(tmp_path / "refuse", OPENS_THINK, rows)
    made = tokenize(tmp_path / "reject", OPENS_THINK, rows, template_drops="reject")
    assert made.rejected.select("example_id", "reason").rows() == [("d/000000", "prompt not continued")]
    assert len(made.table) == 59 and made.result.metrics["rejected_prompt_not_continued_d"] == 1


@pytest.mark.parametrize("template", [OPENS_THINK, R1_DISTILL], ids=["keeps", "cuts"])
def test_r1_templates_convert_with_a_warning(tmp_path, template):
    folder_model(tmp_path / "in", chat_template=template)
    reporter, result = run_conversion(folder_spec(tmp_path / "in"), tmp_path)
    assert "the generation prompt ends in '<think>\\n'" in result.metrics["chat_template_notes"]
    assert any("answers without a think block are not trained" in line for line in reporter.lines)
    cuts = "think blocks in answers: the chat template leaves out the assistant's text"
    assert (cuts in result.metrics["chat_template_notes"]) == (template == R1_DISTILL)


def test_reasoning_content():
    """Before: dropped."""
    messages = [*turns("Q0"), {"role": "assistant", "reasoning_content": "Let me think.", "content": "A0"}]
    tokenizer, tokens = tokens_of(QWEN3, messages)
    assert not tokens.faults
    assert trained_texts(tokenizer, tokens.input_ids, tokens.response_mask) == [
        "<think>\nLet me think.\n</think>\n\nA0<|im_end|>"
    ]
    assert tokens.input_ids == tokenizer.apply_chat_template(messages)["input_ids"]
    _, dropped = tokens_of(CHATML, messages)
    assert [fault.detail for fault in dropped.faults] == [
        "the chat template leaves out the assistant's reasoning_content, or a part of it"
    ]


def test_tool_calls_dropped():
    """Before: the call was dropped, so that the model learned to stop before it."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"town": 0}}}
    messages = [*turns("Weather in town 0?", "Let me look that up.")]
    messages[1]["tool_calls"] = [call]
    _, dropped = tokens_of(CHATML, messages)
    assert [(fault.turn, fault.reason) for fault in dropped.faults] == [(1, "text not rendered")]
    rendered = (
        'Let me look that up.\n<tool_call>\n{"name": "weather", "arguments": {"town": 0}}\n</tool_call><|im_end|>'
    )
    tools = [{"type": "function", "function": {"name": "weather", "description": "by town", "parameters": {}}}]
    later = [*messages, {"role": "tool", "content": "sunny"}, *turns("", "Sunny.")[1:], *turns("Thanks!", "Welcome.")]
    for conversation in (messages, later):
        tokenizer, tokens = tokens_of(QWEN3, conversation, template={"tools": tools})
        assert (
            not tokens.faults
            and tokens.input_ids == tokenizer.apply_chat_template(conversation, tools=tools)["input_ids"]
        )
        trained = trained_texts(tokenizer, tokens.input_ids, tokens.response_mask)
        assert trained[0].removeprefix("<think>\n\n</think>\n\n") == rendered
        assert len(trained) == (1 if conversation is messages else 3)
    _, without = tokens_of(CHATML, turns("Q", "A"), template={"tools": tools})
    assert without.faults[0].detail == "the chat template leaves out the tools weather"


@pytest.mark.parametrize("thinking", [None, True, False])
def test_qwen3_trains_answers_with_and_without_thinking(thinking):
    own = {} if thinking is None else {"chat_template_kwargs": {"enable_thinking": thinking}}
    variables = own.get("chat_template_kwargs", {})
    messages = turns("One?", "First.", "Two?", "<b>Second.")
    tokenizer, tokens = tokens_of(QWEN3, messages, template=own)
    assert not tokens.faults and tokens.input_ids == tokenizer.apply_chat_template(messages, **variables)["input_ids"]
    prompt = tokenizer.apply_chat_template(messages[:3], add_generation_prompt=True, **variables)["input_ids"]
    assert tokens.input_ids[: len(prompt)] == prompt
    # The empty block is in the prompt without thinking; with thinking, the model has to write it.
    block = "" if thinking is False else "<think>\n\n</think>\n\n"
    trained = trained_texts(tokenizer, tokens.input_ids, tokens.response_mask)
    assert trained == ["First.<|im_end|>", f"{block}<b>Second.<|im_end|>"]


def test_qwen3_converts_with_a_note_on_its_think_block(tmp_path):
    folder_model(tmp_path / "in", chat_template=QWEN3)
    _, result = run_conversion(folder_spec(tmp_path / "in"), tmp_path)
    assert result.metrics["chat_template_notes"] == (
        r"it writes '<think>\n\n</think>' before an answer, which generation prompts do not hold: trained"
    )


def test_qwen3_cuts_the_reasoning_of_earlier_answers(tmp_path):
    think = "<think>\nhm\n</think>\n\n"
    rows = examples_of(
        [turns("One?", f"{think}1", "Two?", f"{think}2")] + [turns("Q", f"{think}{n}") for n in range(20)]
    )
    with pytest.raises(InputError, match=r"1 of 21 .*turn 2: the chat template leaves out the assistant's text"):
        tokenize(tmp_path / "refuse", QWEN3, rows)
    made = tokenize(tmp_path / "allow", QWEN3, rows, template_drops="allow")
    tokenizer, first = tiny_tokenizer(), made.table.row(0, named=True)
    trained = trained_texts(tokenizer, first["input_ids"], first["response_mask"])
    assert trained == ["1<|im_end|>", f"{think}2<|im_end|>"]


def test_conversations_of_the_library_may_have_reasoning_parts_and_calls_alone():
    """Before: `thinking` was not checked in the rendering, and a content of None raised an AttributeError."""
    tokenizer = tiny_tokenizer(chat_template=QWEN3)
    plain = tokenize_example(tokenizer, reasoned("Q", "A", "Hm."), 200)
    assert tokenize_example(tokenizer, reasoned("Q", "A", "Hm.", "thinking"), 200) == plain
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "A"}]
    assert tokenize_example(tokenizer, [*turns("Q"), {"role": "assistant", "content": parts}], 200) == plain
    call = [{"type": "function", "function": {"name": "weather", "arguments": {}}}]
    called = [*turns("Q"), {"role": "assistant", "content": None, "tool_calls": call}]
    assert "weather" in tokenizer.decode(tokenize_example(tokenizer, called, 200).input_ids)
    with pytest.raises(InputError, match="turn 2: the chat template leaves out the assistant's reasoning_content"):
        tokenize_example(tiny_tokenizer(), reasoned("Q", "A", "Hm.", "thinking"), 200)
    picture = [{"role": "user", "content": [{"type": "image"}]}, turns("", "A")[1]]
    with pytest.raises(InputError, match="turn 1 has a part of type 'image'; only parts of text are trained"):
        tokenize_example(tiny_tokenizer(), picture, 200)
