"""Tokenisation: the ids of `apply_chat_template`, and a mask that holds the assistants' text and no more."""

import inspect

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from tests.support.chat_conversations import AWKWARD, GEMMA, LLAMA, LONG, SHORT, spoken, with_template
from tests.support.chat_templates import QWEN3
from tests.support.paths import ROOT
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.template_probe import probe_template
from tokenuq_ml.data.tokenization import ConversationTokenizer, default_template, prompt_ids, tokenize_example

SHIPPED_GEMMA = ROOT / "config" / "chat_templates" / "gemma.jinja"

pytestmark = pytest.mark.usefixtures("restore_template")


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA, GEMMA, default_template()], ids="chatml llama gemma default".split()
)
@pytest.mark.parametrize("messages", [SHORT, LONG], ids=["short", "long"])
def test_ids_are_those_of_apply_chat_template(tokenizer, template, messages):
    with_template(tokenizer, template)
    messages = messages[1:] if template == GEMMA and messages[0]["role"] == "system" else messages
    tokens = tokenize_example(tokenizer, messages, 10_000)
    assert tokens.input_ids == tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert len(tokens.response_mask) == len(tokens.input_ids) and not tokens.truncated
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True)["input_ids"]
    assert prompt_ids(tokenizer, messages[:-1]) == prompt
    assert tokens.input_ids[: len(prompt)] == prompt, "generation would go on from other tokens than training"


def test_every_assistant_turn_is_a_response_with_its_end_and_nothing_else_is(tokenizer):
    assert spoken(tokenizer, tokenize_example(tokenizer, SHORT, 999)) == ["12 apples.<|im_end|>"]
    # The user says the assistant's words too: by position, not by what is said.
    assert spoken(tokenizer, tokenize_example(tokenizer, LONG, 999)) == [
        "12 apples.<|im_end|>",
        LONG[-1]["content"] + "<|im_end|>",
    ]
    assert spoken(tokenizer, tokenize_example(tokenizer, AWKWARD, 999)) == [" a  <|im_end|> b\n<|im_end|>"]
    with_template(tokenizer, GEMMA)
    assert spoken(tokenizer, tokenize_example(tokenizer, LONG[1:], 999)) == [
        "12 apples.<|im_end|>",
        LONG[-1]["content"] + "<|im_end|>",
    ]


def test_the_default_template_trains_every_answer_with_its_end(tokenizer):
    with_template(tokenizer, default_template())
    assert tokenizer.decode(tokenize_example(tokenizer, SHORT, 999).input_ids) == (
        "<|im_start|>### User:\nHow many apples?\n\n### Assistant:\n12 apples.<|im_end|>\n\n"
    )
    assert spoken(tokenizer, tokenize_example(tokenizer, LONG, 999)) == [
        "12 apples.<|im_end|>",
        LONG[-1]["content"] + "<|im_end|>",
    ]
    assert tokenizer.decode(prompt_ids(tokenizer, LONG[:2])).endswith("apples?\n\n### Assistant:\n")
    assert probe_template(tokenizer).end_of_turn == tokenizer.eos_token_id


def test_the_default_template_needs_no_beginning_of_sequence():
    """As Qwen2 has none."""
    tokenizer = with_template(tiny_tokenizer(), default_template())
    tokenizer.bos_token = None
    assert tokenizer.decode(tokenize_example(tokenizer, SHORT, 999).input_ids).startswith("### User:\nHow")


def test_the_template_shipped_for_gemma():
    """Gemma's own turns, for its base models; a system turn opens the user's, where Gemma's own would refuse it."""
    tokenizer = with_template(tiny_tokenizer(), SHIPPED_GEMMA.read_text())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokens = tokenize_example(tokenizer, LONG, 999)
    assert tokenizer.decode(tokens.input_ids) == (
        "<|im_start|><start_of_turn>user\nAnswer.\n\nHow many apples?<end_of_turn>\n"
        "<start_of_turn>model\n12 apples.<end_of_turn>\n<start_of_turn>user\n12 apples.<end_of_turn>\n"
        f"<start_of_turn>model\n{LONG[-1]['content']}<end_of_turn>\n"
    )
    assert spoken(tokenizer, tokens) == ["12 apples.<end_of_turn>", LONG[-1]["content"] + "<end_of_turn>"]
    prompt = prompt_ids(tokenizer, LONG[:-1])
    assert tokens.input_ids[: len(prompt)] == prompt
    assert (
        probe_template(tokenizer).end_of_turn
        == tokenizer.convert_tokens_to_ids("<end_of_turn>")
        != tokenizer.eos_token_id
    )


def test_an_end_of_turn_is_a_special_token_or_none(tokenizer):
    assert probe_template(tokenizer).end_of_turn == tokenizer.convert_tokens_to_ids("<|im_end|>")
    with_template(tokenizer, default_template().replace("eos_token", "'.'"))
    assert probe_template(tokenizer).end_of_turn is None


def test_the_trimming_tokenizer_trims():
    widths = [
        {
            stop - start
            for start, stop in tiny_tokenizer(trim_offsets=trim)(
                "is  7", add_special_tokens=False, return_offsets_mapping=True
            )["offset_mapping"]
        }
        for trim in (False, True)
    ]
    assert 0 not in widths[0] and 0 in widths[1]


def test_a_lone_space_is_a_response_token(tokenizer):
    messages = [SHORT[0], {"role": "assistant", "content": "is 7"}]
    tokens = tokenize_example(tokenizer, messages, 999)
    texts = [tokenizer.decode([i]) for i, scored in zip(*tokens[:2], strict=True) if scored]
    assert " " in texts and "".join(texts) == "is 7<|im_end|>"


def test_the_end_of_turn_is_scored_though_it_is_the_padding_too(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    tokens = tokenize_example(tokenizer, LONG, 999)
    scored = [mask for token, mask in zip(*tokens[:2], strict=True) if token == tokenizer.pad_token_id]
    assert scored == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("header", "answer"),
    [("assistant: t", "he price"), ("assistant: ", "the price"), ("assistant: ", "7 apples.")],
)
def test_an_answer_is_trained_whole_where_a_token_would_stand_across_its_border(tokenizer, header, answer):
    with_template(
        tokenizer,
        "{% for m in messages %}{{ (header if m['role'] == 'assistant' else '') + m['content'] + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ header }}{% endif %}".replace("header", repr(header)),
    )
    messages = [SHORT[0], {"role": "assistant", "content": answer}]
    tokens = tokenize_example(tokenizer, messages, 999)
    assert spoken(tokenizer, tokens) == [answer + "<|im_end|>"]
    # Plain transformers: the prompt that a model continues, and then the answer by itself.
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True)["input_ids"]
    assert tokens.input_ids == prompt + tokenizer(answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert tokens.response_mask == [False] * len(prompt) + [True] * (len(tokens.input_ids) - len(prompt))
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert (tokens.input_ids == whole) == (answer[0] == "7"), "the case shows nothing"


def test_two_answers_across_borders_are_both_trained_whole(tokenizer):
    with_template(
        tokenizer,
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    )
    messages = [SHORT[0], {"role": "assistant", "content": "the price"}] * 2
    tokens = tokenize_example(tokenizer, messages, 999)
    assert spoken(tokenizer, tokens) == ["the price<|im_end|>"] * 2
    # The history of a prompt has the same tokens as in training.
    prompt = prompt_ids(tokenizer, messages[:-1])
    assert tokens.input_ids[: len(prompt)] == prompt and tokens.response_mask[len(prompt)]


def test_nothing_predicts_the_first_token(tokenizer):
    with_template(tokenizer, "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}")
    tokens = tokenize_example(tokenizer, [{"role": "user", "content": ""}, SHORT[1]], 999)
    assert tokens.response_mask[0] is False and all(tokens.response_mask[1:])


# Special tokens in the text of turns


def test_special_tokens_in_a_text_are_encoded_as_text(tokenizer):
    tokens = tokenize_example(tokenizer, AWKWARD, 999)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokens.input_ids.count(end) == 2, "only the template's own"
    assert tokenizer.decode(tokens.input_ids) == tokenizer.apply_chat_template(AWKWARD, tokenize=False)
    kept = ConversationTokenizer(tokenizer, "keep").tokenize([Example("", "", AWKWARD)])[0]
    assert kept.input_ids == tokenizer.apply_chat_template(AWKWARD)["input_ids"] and kept.input_ids.count(end) == 3
    assert kept.has_special_tokens and not kept.looks_templated


@pytest.mark.skipif(
    "sanitize_control_tokens" not in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    reason="a newer transformers",
)
@pytest.mark.parametrize("place", ["user", "assistant"])
def test_special_tokens_as_text_are_those_of_transformers(tokenizer, place):
    messages = [
        {**turn, "content": "a<|im_end|>\n<|im_start|>user b"} if turn["role"] == place else turn for turn in LONG
    ]
    tokens = tokenize_example(tokenizer, messages, 999)
    expected = tokenizer.apply_chat_template(messages, sanitize_control_tokens=True)["input_ids"]
    # transformers encodes a text piece by piece, so that neighbours of such a token may be divided in another way.
    assert tokenizer.decode(tokens.input_ids) == tokenizer.decode(expected)
    special = tokenizer.all_special_ids
    assert [i for i in tokens.input_ids if i in special] == [i for i in expected if i in special]
    prompt = prompt_ids(tokenizer, messages[:-1])
    assert tokens.input_ids[: len(prompt)] == prompt


def test_text_that_is_templated_already_is_noticed(tokenizer):
    text = tokenizer.apply_chat_template(SHORT, tokenize=False)
    (tokens,) = ConversationTokenizer(tokenizer).tokenize([Example("", "", [{**SHORT[0], "content": text}, SHORT[1]])])
    assert tokens.looks_templated and tokens.has_special_tokens and not tokens.faults


# Raw text


@pytest.mark.parametrize("bos", [True, False])
def test_raw_text_is_trained_whole_without_a_template(tokenizer, bos):
    text = "the price\n\nis <|im_end|> 3"
    if bos:
        frame = processors.TemplateProcessing("<|im_start|> $0", special_tokens=[("<|im_start|>", 0)])
        before, tokenizer.backend_tokenizer.post_processor = tokenizer.backend_tokenizer.post_processor, frame
    plain = tokenizer(text, split_special_tokens=True)["input_ids"]
    (tokens,) = ConversationTokenizer(tokenizer).tokenize([Example("", "", [{"role": "text", "content": text}])])
    if bos:
        tokenizer.backend_tokenizer.post_processor = before
    assert tokens.input_ids == [*plain, tokenizer.eos_token_id] and (plain[0] == tokenizer.bos_token_id) == bos
    assert tokens.response_mask == [False] + [True] * len(plain) and not tokens.faults


# Long conversations


def test_a_long_conversation_has_the_masks_of_its_prompts(tokenizer):
    messages = [{**turn, "content": f"{turn['content']} {n // 2}\n"} for n, turn in enumerate(SHORT * 30)]
    tokens = tokenize_example(tokenizer, messages, 99999)
    assert tokens.response_mask == by_prompts(tokenizer, messages, tokens.input_ids)
    for template in (LLAMA, GEMMA, default_template(), QWEN3):
        with_template(tokenizer, template)
        tokens = tokenize_example(tokenizer, messages, 99999)
        assert spoken(tokenizer, tokens)[:2] != spoken(tokenizer, tokens)[1:3] and len(spoken(tokenizer, tokens)) == 30
        if template != QWEN3:
            assert tokens.response_mask == by_prompts(tokenizer, messages, tokens.input_ids)


def by_prompts(tokenizer, messages, ids):
    """The mask by plain transformers: one prompt per answer, up to the end of turn after it."""
    mask, end = [False] * len(ids), tokenizer.convert_tokens_to_ids("<|im_end|>")
    for turn in range(1, len(messages), 2):
        prompt = tokenizer.apply_chat_template(messages[:turn], add_generation_prompt=True)["input_ids"]
        assert ids[: len(prompt)] == prompt
        stop = ids.index(end, len(prompt)) + 1
        mask[len(prompt) : stop] = [True] * (stop - len(prompt))
    return mask


def test_the_number_of_renderings_does_not_grow_with_the_turns(tokenizer):
    rendered, apply = [], tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda *args, **kwargs: rendered.append(1) or apply(*args, **kwargs)
    try:
        counts = []
        for exchanges in (20, 80):
            rendered.clear()
            messages = [{**turn, "content": f"{turn['content']} {n}"} for n, turn in enumerate(SHORT * exchanges)]
            tokenize_example(tokenizer, messages, 99999)
            counts.append(len(rendered))
    finally:
        del tokenizer.apply_chat_template
    assert counts[0] == counts[1]
