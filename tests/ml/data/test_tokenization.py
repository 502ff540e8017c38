"""Tokenisation: the ids of `apply_chat_template`, and a mask that holds the assistants' text and no more."""

import pytest

from tests.support.paths import ROOT
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.data.tokenization import default_template, end_of_turn, prompt_ids, tokenize_example
from tokenuq_ml.errors import InputError

SHIPPED_GEMMA = ROOT / "config" / "chat_templates" / "gemma.jinja"

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role\nnot supported') }}"
    "{% endif %}{{ '<t>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<t>model\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ '[' + m['role'] + ']' + m['content'] "
    "+ '<|im_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)

SHORT = [{"role": "user", "content": "How many apples?"}, {"role": "assistant", "content": "12 apples."}]
LONG = [
    {"role": "system", "content": "Answer."},
    *SHORT,
    {"role": "user", "content": "12 apples."},
    {"role": "assistant", "content": "The price\n\n is  3 \n🍎 é x   \n y"},
]
AWKWARD = [{"role": "user", "content": "x"}, {"role": "assistant", "content": " a  <|im_end|> b\n"}]


@pytest.fixture(scope="module", params=[False, True], ids=["whole_offsets", "trimmed_offsets"])
def tokenizer(request):
    return tiny_tokenizer(trim_offsets=request.param)


def spoken(tokenizer, tokens) -> list[str]:
    """Text of each run of response tokens."""
    runs, run = [], []
    for token, scored in [*zip(tokens.input_ids, tokens.response_mask, strict=True), (None, False)]:
        if scored:
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return runs


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(autouse=True)
def restore_template(tokenizer):
    yield
    tokenizer.chat_template = CHATML


@pytest.mark.parametrize(
    "template", [CHATML, LLAMA, GEMMA, default_template()], ids="chatml llama gemma default".split()
)
@pytest.mark.parametrize("messages", [SHORT, LONG, AWKWARD], ids=["short", "long", "awkward"])
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
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id


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
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<end_of_turn>") != tokenizer.eos_token_id


def test_an_end_of_turn_is_a_special_token_or_none(tokenizer):
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    with_template(tokenizer, default_template().replace("eos_token", "'.'"))
    assert end_of_turn(tokenizer) is None


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


def test_a_token_over_the_border_counts_to_the_prompt(tokenizer):
    with_template(
        tokenizer,
        "{% for m in messages %}{{ m['role'] + ': t' if m['role'] == 'assistant' else '' }}"
        "{{ m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: t' }}{% endif %}",
    )
    messages = [SHORT[0], {"role": "assistant", "content": "he price"}]
    tokens = tokenize_example(tokenizer, messages, 999)
    texts = [tokenizer.decode([i]) for i in tokens.input_ids]
    border = next(i for i, text in enumerate(texts) if text.startswith(" t") and i and texts[i - 1] == ":")
    assert len(texts[border]) > len(" t"), "no token over the border: the test shows nothing"
    assert not tokens.response_mask[border]
    assert texts[border] + spoken(tokenizer, tokens)[0] == " the price<|im_end|>"


@pytest.mark.parametrize(("answer", "first"), [("7 apples.", "7 apples."), ("the price", " price")])
def test_a_header_that_ends_in_a_space(tokenizer, answer, first):
    # The space is a token by itself before 7, and one with `the`; neither begins in the response.
    with_template(
        tokenizer,
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
    )
    tokens = tokenize_example(tokenizer, [SHORT[0], {"role": "assistant", "content": answer}], 999)
    assert spoken(tokenizer, tokens) == [first + "<|im_end|>"]


def test_nothing_predicts_the_first_token(tokenizer):
    # A template that leaves out what the user says.
    with_template(
        tokenizer, "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    tokens = tokenize_example(tokenizer, SHORT, 999)
    assert tokens.response_mask == [False] + [True] * (len(tokens.input_ids) - 1)


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
    with pytest.raises(InputError, match=r"chat template .*models\.yaml"):
        tokenize_example(tokenizer, LONG[1:], 999)


def test_the_message_of_a_template_that_rejects_a_role_is_shown(tokenizer):
    with pytest.raises(InputError, match=r"rejects the conversation: System role not supported; correct"):
        tokenize_example(with_template(tokenizer, GEMMA), LONG, 999)


def test_a_slow_tokenizer_is_rejected(tokenizer):
    class Slow:
        is_fast, chat_template, apply_chat_template = False, CHATML, tokenizer.apply_chat_template

    with pytest.raises(InputError, match="Slow returns no character offsets"):
        tokenize_example(Slow(), SHORT, 99)
