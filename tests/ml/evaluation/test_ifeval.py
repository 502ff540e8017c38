"""IF-Eval's checkers offline: verdicts known by reading the response, and the same every time."""

import json
import random
import socket
import subprocess
import sys

import langdetect
import polars as pl
import pytest

from tests.support.paths import ROOT
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation import ifeval
from tokenuq_ml.evaluation.ifeval import CHECK_SCHEMA, check, ifeval_examples
from tokenuq_ml.evaluation.metrics import EXAMPLE_SCHEMA
from tokenuq_ml.tables.parquet import read_table, write_table
from tokenuq_ml.tables.schemas import TABLES


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def prompts(*tasks: tuple[list[str], list[dict | None]]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "example_id": [f"ifeval/{number}" for number in range(len(tasks))],
            "split": "ood",
            "messages": [[{"role": "user", "content": f"Do task {number}."}] for number in range(len(tasks))],
            "source": [
                json.dumps({"key": number, "instruction_id_list": names, "kwargs": kwargs})
                for number, (names, kwargs) in enumerate(tasks)
            ],
        }
    )


def follows(name: str, kwargs: dict | None, response: str, mode: str = "strict") -> bool:
    row = check(prompts(([name], [kwargs])), [response]).row(0, named=True)
    assert row[f"inst_level_{mode}"] == [row[f"prompt_level_{mode}"]]
    return row[f"prompt_level_{mode}"]


SENTENCES = "length_constraints:number_sentences"
THREE = "Dr. Smith lives in the U.S. with Mr. Jones. He is well! Are you?"  # three only if abbreviations are known


@pytest.mark.parametrize(
    "name, kwargs, response, expected",
    [
        (SENTENCES, {"num_sentences": 3, "relation": "at least"}, THREE, True),
        (SENTENCES, {"num_sentences": 4, "relation": "at least"}, THREE, False),
        (SENTENCES, {"num_sentences": 4, "relation": "less than"}, THREE, True),
        ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}, "one two, three four", True),
        ("length_constraints:number_words", {"num_words": 5, "relation": "at least"}, "one two, three four", False),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 2, "capital_relation": "at least"},
            "It is BIG. And RED.",
            True,
        ),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 3, "capital_relation": "at least"},
            "It is BIG. And RED.",
            False,
        ),
        ("language:response_language", {"language": "de"}, "Das ist ein ganz gewöhnlicher deutscher Satz.", True),
        ("language:response_language", {"language": "fr"}, "Das ist ein ganz gewöhnlicher deutscher Satz.", False),
        ("change_case:english_lowercase", {}, "this is a plain english sentence, all small.", True),
        ("punctuation:no_comma", None, "no comma here", True),
        ("punctuation:no_comma", {}, "one, comma", False),
        ("punctuation:no_comma", {}, "  ", False),
    ],
)
def test_verdicts_known_by_reading_the_response(name, kwargs, response, expected):
    assert follows(name, kwargs, response) is expected


def test_sentences_are_split_as_by_punkt_and_not_at_every_period():
    assert ifeval.sentence_tokenizer().tokenize(THREE) == [
        "Dr. Smith lives in the U.S. with Mr. Jones.",
        "He is well!",
        "Are you?",
    ]


def test_nulls_in_kwargs_count_as_absent():
    full = {"num_sentences": 3, "relation": "at least", "keywords": None, "language": None, "num_words": None}
    assert follows(SENTENCES, full, THREE)
    assert not follows(SENTENCES, full, "One.")


def test_loose_forgives_a_first_line_that_strict_does_not():
    response = "Sure, here it is:\nno comma at all"
    assert not follows("punctuation:no_comma", {}, response, "strict")
    assert follows("punctuation:no_comma", {}, response, "loose")


def test_a_prompt_is_followed_only_with_all_of_its_instructions():
    table = check(prompts((["punctuation:no_comma", "change_case:english_capital"], [{}, {}])), ["not in capitals"])
    assert table["inst_level_strict"].to_list() == [[True, False]]
    assert table["prompt_level_strict"].to_list() == [False]
    assert table["prompt"].to_list() == ["Do task 0."]


def test_verdicts_do_not_depend_on_other_rows_or_random_state():
    """Texts that an unseeded langdetect calls English about every other time, and kwargs that leave a draw."""
    tasks = [(["language:response_language"], [{"language": "en"}])] * 16
    tasks += [(["detectable_content:number_placeholders"], [{}])] * 16
    texts = ["plan a see", "fin main", "an hallo me", "a arts radio"] * 4 + ["[one] and [two]"] * 16
    first = check(prompts(*tasks), texts)
    random.seed(99)
    langdetect.detect(texts[0])
    assert check(prompts(*tasks), texts).equals(first)
    backwards = check(prompts(*tasks).reverse(), texts[::-1])
    assert backwards.reverse().equals(first)


def test_the_callers_random_state_is_restored():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    check(prompts((["keywords:existence"], [{}])), ["text"])
    assert random.random() == expected


@pytest.mark.slow
def test_another_process_without_network_or_nltk_data_agrees(tmp_path):
    """A fresh import of lm-eval, which would download punkt_tab, under rank 0 and an empty home."""
    code = f"""
import socket
def refuse(*args, **kwargs): raise AssertionError("a socket was opened")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import sys; sys.path.insert(0, {str(ROOT)!r})
from {__name__} import SENTENCES, THREE, follows
assert follows(SENTENCES, {{"num_sentences": 3, "relation": "at least"}}, THREE)
assert not follows(SENTENCES, {{"num_sentences": 4, "relation": "at least"}}, THREE)
assert "torch" not in sys.modules
"""
    path = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            "HOME": str(tmp_path),
            "NLTK_DATA": str(tmp_path / "none"),
            "LOCAL_RANK": "0",
            "PYTHONPATH": ":".join(path),
        },
    )
    assert done.returncode == 0, done.stderr
    assert "nltk" not in done.stdout.lower()
    assert not any("nltk" in path.name for path in tmp_path.rglob("*"))


def test_the_columns_are_those_of_generations(tmp_path):
    table = check(prompts((["punctuation:no_comma"], [{}])), ["yes"])
    assert dict(table.schema) == CHECK_SCHEMA
    table = table.with_columns(n_tokens=pl.Series([1], dtype=pl.Int32))
    assert set(table.columns) == set(TABLES["generations"].columns)
    write_table(table, "generations", tmp_path, spec_hash="x", code_version="1-x")
    assert read_table(tmp_path).select(table.columns).equals(table)


def test_metrics_are_shares_of_prompts_and_of_instructions():
    generations = pl.DataFrame(
        {
            "example_id": ["b", "a", "c"],
            "prompt": "",
            "response": "",
            "prompt_level_strict": [False, True, False],
            "prompt_level_loose": [True, True, False],
            "inst_level_strict": [[True, False], [True], [False, False, False]],
            "inst_level_loose": [[True, True], [True], [True, False, True]],
        },
        schema=CHECK_SCHEMA,
    )
    examples = ifeval_examples(generations, "ifeval")
    assert dict(examples.schema) == EXAMPLE_SCHEMA
    sums = examples.group_by("metric").agg(pl.col("numerator", "denominator").sum())
    assert {metric: (followed, asked) for metric, followed, asked in sums.iter_rows()} == {
        "prompt_level_strict_acc": (1, 3),
        "prompt_level_loose_acc": (2, 3),
        "inst_level_strict_acc": (2, 6),
        "inst_level_loose_acc": (5, 6),
    }
    assert set(examples.select("dataset", "split").rows()) == {("ifeval", "ood")}
    of_b = examples.filter(pl.col("example_id") == "b").select("metric", "numerator", "denominator")
    assert of_b.rows() == [
        ("prompt_level_strict_acc", 0, 1),
        ("inst_level_strict_acc", 1, 2),
        ("prompt_level_loose_acc", 1, 1),
        ("inst_level_loose_acc", 2, 2),
    ]


@pytest.mark.parametrize(
    "source, message",
    [
        ("no json", "ifeval/0.*format: ifeval"),
        (json.dumps({"key": 1, "kwargs": []}), "ifeval/0.*instruction_id_list"),
        (json.dumps({"key": 1, "instruction_id_list": ["no:such"], "kwargs": [{}]}), "ifeval/0.*'no:such'"),
        (json.dumps({"key": 1, "instruction_id_list": ["punctuation:no_comma"], "kwargs": []}), "ifeval/0.*0 kwargs"),
    ],
)
def test_a_bad_row_is_named(source, message):
    table = prompts((["punctuation:no_comma"], [{}])).with_columns(source=pl.lit(source))
    with pytest.raises(InputError, match=message):
        check(table, ["text"])


@pytest.mark.parametrize("package", ["lm_eval", "langdetect", "nltk", "punkt", "immutabledict"])
def test_a_missing_package_is_named_with_its_installation(package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package or "lm_eval.tasks.ifeval" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    ifeval.load_checkers.cache_clear()
    with pytest.raises(InputError, match=rf"{package}.*pip install 'tokenuq\[quickstart\]'"):
        check(prompts((["punctuation:no_comma"], [{}])), ["text"])
    ifeval.load_checkers.cache_clear()


def test_the_number_of_responses_must_match():
    with pytest.raises(ValueError, match="2 responses for 1 prompts"):
        check(prompts((["punctuation:no_comma"], [{}])), ["a", "b"])
