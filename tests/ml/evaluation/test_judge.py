"""Judges: a local fake endpoint whose rule is known, and a tiny model against its plain log-probabilities."""

import logging
import math

import pytest
import torch

from tests.support.fake_endpoint import KEY, endpoint, outputs, text, verdict
from tests.support.tiny_models import FLOAT32, tiny_model
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import JudgeSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.judge import Judge, JudgeUnavailable, Pair, load_package, local_completions

pytestmark = pytest.mark.slow

PAIRS = [
    Pair("Say a.", "a good one", "bad"),
    Pair("Say b.", "bad", 'a "good" {one}\nin two lines'),
    Pair("Say c.", "", "good"),
]


def better(body: dict) -> dict:
    """Prefers what calls itself good, by 9 to 1."""
    return verdict(0.9 if "good" in outputs(body)[0] else 0.1)


def spec(served, **more) -> JudgeSpec:
    return JudgeSpec(base_url=served.url, model="judge-instruct", api_key_env="JUDGE_KEY", **more)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)


def test_the_preference_follows_from_the_endpoints_probabilities():
    level = logging.getLogger().level
    with endpoint(better) as served:
        told = Judge(spec(served)).compare(PAIRS)
    assert told == pytest.approx([0.1, 0.9, 0.9])
    assert {body["model"] for body in served.requests} == {"judge-instruct"}
    # alpaca_eval's own prompt, with the outputs in the order given, whatever order the requests arrive in.
    assert sorted(outputs(body) for body in served.requests) == sorted(pair[1:] for pair in PAIRS)
    assert all("leaderboard" in body["messages"][0]["content"] for body in served.requests)
    assert all(body["logprobs"] and body["max_tokens"] == 1 for body in served.requests)
    assert logging.getLogger().level == level


def test_an_evaluator_can_parse_text():
    ranks = "[{'model': 'model_1', 'rank': %d}, {'model': 'model_2', 'rank': %d}]"

    def answer(body: dict) -> dict:
        prompt = body["messages"][-1]["content"]
        first, second = prompt.index("model_1"), prompt.index("model_2")
        return text(ranks % ((1, 2) if "good" in prompt[first:second] else (2, 1)))

    with endpoint(answer) as served:
        assert Judge(spec(served, annotator="alpaca_eval_gpt4")).compare(PAIRS) == [0.0, 1.0, 1.0]


def test_an_answer_without_verdict_gives_none():
    def answer(body: dict) -> dict:
        return better(body) if "Say a." in body["messages"][-1]["content"] else text("I like both.")

    with endpoint(answer) as served:
        assert Judge(spec(served)).compare(PAIRS) == [pytest.approx(0.1), None, None]


@pytest.mark.parametrize("status", [429, 503])
def test_an_endpoint_that_is_busy_for_a_moment_is_asked_again(status):
    busy = [True, True]

    def answer(body: dict) -> dict:
        if busy:
            busy.pop()
            raise RuntimeError("try later", status)
        return better(body)

    with endpoint(answer) as served:
        assert Judge(spec(served)).compare(PAIRS[:1]) == [pytest.approx(0.1)]
    assert len(served.requests) == 3


def test_an_endpoint_that_stays_broken_is_named():
    def answer(body: dict) -> dict:
        raise RuntimeError("on fire", 500)

    with endpoint(answer) as served, pytest.raises(JudgeUnavailable, match="InternalServerError: .*on fire"):
        Judge(spec(served)).compare(PAIRS[:1])


def test_missing_key_wrong_key_and_missing_endpoint_have_their_own_messages(monkeypatch):
    with endpoint(better) as served:
        there = spec(served)
        monkeypatch.setenv("JUDGE_KEY", "another")
        with pytest.raises(JudgeUnavailable, match=f"{served.url} refuses the key"):
            Judge(there)
        monkeypatch.delenv("JUDGE_KEY")
        with pytest.raises(JudgeUnavailable, match="environment variable JUDGE_KEY holds no key"):
            Judge(there)
        assert not served.requests
    with pytest.raises(JudgeUnavailable, match=f"{served.url} cannot be reached"):
        Judge(JudgeSpec(base_url=served.url, model="m"))


def test_an_endpoint_without_keys_is_asked():
    with endpoint(better, key=None) as served:
        assert Judge(JudgeSpec(base_url=served.url, model="m")).compare(PAIRS[:1]) == [pytest.approx(0.1)]


def test_an_endpoint_that_fails_midway_is_unavailable():
    def answer(body: dict) -> dict:
        raise RuntimeError("out of credit")

    with endpoint(answer) as served:
        with pytest.raises(JudgeUnavailable, match="gave no answer: BadRequestError: .*out of credit"):
            Judge(spec(served)).compare(PAIRS)


def test_a_client_configuration_on_the_machine_is_ignored(monkeypatch, tmp_path):
    for name in ("OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/v1")
    with endpoint(better) as served:
        assert len(Judge(spec(served)).compare(PAIRS)) == len(served.requests) == 3


SYSTEMLESS = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", [None, SYSTEMLESS])
def test_a_local_model_gives_its_plain_probabilities(template):
    tokenizer = tiny_tokenizer(**({} if template is None else {"chat_template": template}))
    model = tiny_model(vocab=len(tokenizer))
    judge = Judge(JudgeSpec(local_model="tiny"), local_completions(model, tokenizer, FLOAT32))
    told = judge.compare(PAIRS)
    chatml, prompt = load_package().prompt_to_chatml, judge._annotator.prompt_template
    for pair, share in zip(PAIRS, told, strict=True):
        filled = prompt
        for name, value in pair._asdict().items():
            filled = filled.replace(f"{{{name}}}", value)
        messages = chatml(filled)
        if template is not None:
            system, user = messages
            messages = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        m, M = (logits[tokenizer.convert_tokens_to_ids(letter)].item() for letter in "mM")
        assert share == pytest.approx(1 / (1 + math.exp(m - M)), rel=1e-4)
    assert len(set(told)) == 3
    assert judge.compare(PAIRS) == told


def test_an_unknown_evaluator_is_named_with_the_known_ones():
    with endpoint(better) as served:
        with pytest.raises(InputError, match="no evaluator 'gpt9'; it has .*weighted_alpaca_eval_gpt4_turbo"):
            Judge(spec(served, annotator="gpt9"))


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    load_package.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "alpaca_eval.annotators.pairwise_evaluator", None)
    with pytest.raises(InputError, match=r"alpaca_eval.*pip install 'tokenuq\[alpacaeval\]'"):
        load_package()
    load_package.cache_clear()
