"""Which tokens of users' rows are trained, and with which weight, compared with a rendering by transformers alone."""

import json

import pytest

from tests.support.chat_templates import QWEN3
from tests.support.tiny_datasets import parse_row
from tests.support.tiny_tokenizer import CHATML, tiny_tokenizer
from tokenuq_ml.data.examples import Example
from tokenuq_ml.data.tokenization import ConversationTokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": 5}}}


def turn(role: str, content: str, **more) -> dict:
    return {"role": role, "content": content, **more}


def rendered(tokenizer, messages: list[dict], weights: list[float], **arguments) -> tuple[list[int], list[float]]:
    """Return ids, and the weight of each: a turn's tokens are those between generation prompt and end of turn."""

    def ids(turns, header=False) -> list[int]:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=header, **arguments)
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    end, every = tokenizer.convert_tokens_to_ids("<|im_end|>"), ids(messages)
    expected = [0.0] * len(every)
    for number, weight in enumerate(weights):
        if weight:
            start = len(ids(messages[:number], header=True))
            stop = every.index(end, start) + 1
            expected[start:stop] = [weight] * (stop - start)
    return every, expected


@pytest.mark.parametrize(
    ("template", "format", "row", "messages", "weights", "arguments"),
    [
        (
            CHATML,
            "prompt_completion",
            {
                "prompt": [turn("user", "Q"), turn("assistant", "example answer"), turn("user", "And now?")],
                "completion": [turn("assistant", "the price")],
            },
            [
                turn("user", "Q"),
                turn("assistant", "example answer"),
                turn("user", "And now?"),
                turn("assistant", "the price"),
            ],
            [0, 0, 0, 1],
            {},
        ),
        (
            CHATML,
            "messages",
            {
                "messages": [
                    *(
                        turn("system", ""),
                        turn("user", "2+2?"),
                        turn("assistant", "5", train=False),
                        turn("user", "Sure?"),
                    ),
                    *(turn("assistant", "No, 4.", weight=0.5), turn("user", "Thanks"), turn("assistant", "Bye")),
                ]
            },
            [
                *(turn("user", "2+2?"), turn("assistant", "5"), turn("user", "Sure?")),
                *(turn("assistant", "No, 4."), turn("user", "Thanks"), turn("assistant", "Bye")),
            ],
            [0, 0, 0, 0.5, 0, 1],
            {},
        ),
        (
            CHATML,
            "alpaca",
            {
                "instruction": "And in winter?",
                "input": "",
                "output": "Cold.",
                "system": "You are a weather desk.",
                "history": [["Is it warm in summer?", "Yes, warm."]],
            },
            [
                *(turn("system", "You are a weather desk."), turn("user", "Is it warm in summer?")),
                *(turn("assistant", "Yes, warm."), turn("user", "And in winter?"), turn("assistant", "Cold.")),
            ],
            [0, 0, 1, 0, 1],
            {},
        ),
        (
            QWEN3,
            "sharegpt",
            {
                "conversations": [{"from": "human", "value": "Price?"}, {"from": "gpt", "value": "5 coins"}],
                "system": "Answer as a pirate.",
                "tools": '[{"name":"price"}]',
            },
            [turn("system", "Answer as a pirate."), turn("user", "Price?"), turn("assistant", "5 coins")],
            [0, 0, 1],
            {"tools": [{"type": "function", "function": {"name": "price"}}]},
        ),
        (
            QWEN3,
            "messages",
            {"messages": [turn("user", "Q"), turn("assistant", "A", thinking="Let me think.")]},
            [turn("user", "Q"), turn("assistant", "A", reasoning_content="Let me think.")],
            [0, 1],
            {},
        ),
        (
            QWEN3,
            "messages",
            {
                "messages": [
                    turn("user", "Weather?"),
                    turn("assistant", "Let me look.", tool_calls=[CALL], train=False),
                    turn("tool", "rain", tool_call_id="c1"),
                    turn("assistant", "Rain."),
                ]
            },
            [turn("user", "Weather?"), turn("assistant", "Let me look.", tool_calls=[CALL]), turn("tool", "rain")]
            + [turn("assistant", "Rain.")],
            [0, 0, 0, 1],
            {},
        ),
        (
            QWEN3,
            "messages",
            {"messages": [turn("user", "Weather?"), turn("assistant", "Let me look.", tool_calls=[CALL])]},
            [turn("user", "Weather?"), turn("assistant", "Let me look.", tool_calls=[CALL])],
            [0, 1],
            {},
        ),
    ],
    ids=["trl", "weights", "alpaca", "tools", "reasoning", "tool result", "tool call"],
)
def test_the_trained_tokens_are_those_that_transformers_renders(template, format, row, messages, weights, arguments):
    tokenizer = tiny_tokenizer(chat_template=template)
    parsed = parse_row(format, row)
    stored = Example("d/0", "train", parsed.messages, {}, parsed.turn_weights, parsed.template).row
    example = Example.from_row(json.loads(json.dumps(stored)))
    (tokens,) = ConversationTokenizer(tokenizer).tokenize([example])
    ids, expected = rendered(tokenizer, messages, weights, **arguments)
    assert not tokens.faults and tokens.input_ids == ids
    assert tokens.response_mask == [weight > 0 for weight in expected] and any(tokens.response_mask)
    given = [float(trained) for trained in tokens.response_mask] if tokens.weights is None else tokens.weights
    assert given == expected
