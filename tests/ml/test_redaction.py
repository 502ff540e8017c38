"""What `redacted` hides and what it leaves."""

import json

import pytest

from tokenuq_ml import redaction
from tokenuq_ml.redaction import RedactedStream, hide, holds_secret, redacted, redacted_values, secret_values

HUB = "hf_" + "aBcDeFgHiJ" * 3
API = "sk-proj-" + "a1b2c3d4" * 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"401 for {HUB}.", "401 for ***."),
        (f"Incorrect API key provided: {API}. See", "Incorrect API key provided: ***. See"),
        ("Incorrect API key provided: my-k**y. See", "Incorrect API key provided: ***. See"),
        ("https://me:word@host:8/v1 is down", "https://***@host:8/v1 is down"),
        ("postgresql://me:p@ss@db/x", "postgresql://***@db/x"),
        ("https://token-only@host/x", "https://***@host/x"),
        ("https://host/x?a=1&api_key=abc&b=2", "https://host/x?a=1&api_key=***&b=2"),
        ("https://bucket/x?X-Amz-Signature=0a1b", "https://bucket/x?X-Amz-Signature=***"),
        ("Authorization: Bearer abcdefgh", "Authorization: Bearer ***"),
        ("{'api_key': 'something', 'n': 1}", "{'api_key': '***', 'n': 1}"),
        ('{"authorization": "Basic dXNlcjpwYXNz"}', '{"authorization": "Basic ***"}'),
        (json.dumps('{"authorization": "Bearer abcdefgh"}'), json.dumps('{"authorization": "Bearer ***"}')),
        ("ghp_" + "a" * 36, "***"),
        ("AKIAABCDEFGHIJKLMNOP", "***"),
    ],
)
def test_what_looks_secret_is_hidden(text, shown):
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "per token= the",
        "api_key_env: JUDGE_KEY",
        "s3://bucket/key",
        "git@github.com:owner/name",
        "https://host/a@b",
        "data version 0a1b2c3d-cpu-float32, hf_transformers, sk-learn-is-a-long-name",
        "the key of the first row; password: none",
        "",
    ],
)
def test_other_texts_are_left(text):
    assert redacted(text) is text


def test_values_of_secret_variables_are_hidden_in_every_form(monkeypatch):
    key = 'a key/of the "test\'s"'
    monkeypatch.setenv("ANY_API_KEY", key)
    for form in (key, repr(key), json.dumps(key), "a+key%2Fof+the+%22test%27s%22"):
        shown = redacted(f"<{form}>")
        assert "key" not in shown and "***" in shown


def test_which_variables_are_secret():
    secret = {"HF_TOKEN": "1" * 8, "OPENAI_API_KEY": "2" * 8, "AWS_SECRET_ACCESS_KEY": "3" * 8, "PGPASSWORD": "4" * 8}
    others = {
        "TOKENIZERS_PARALLELISM": "false   long",
        "HF_TOKEN_PATH": "/home/me/token",
        "PWD": "/home/me/folder",
        "KEY": "short",
        "MONKEY": "long enough",
    }
    assert set(secret_values(secret | others)) == set(secret.values())


def test_a_value_that_was_handed_over_is_hidden(monkeypatch):
    monkeypatch.setattr(redaction, "_hidden", set())
    assert redacted("the word of the day") == "the word of the day"
    hide("word of the day")
    hide("")
    assert redacted("the word of the day") == "the ***"


def test_configured_texts_that_hold_credentials():
    assert holds_secret("https://me:word@host/v1") and holds_secret("https://host/v1?key=abc") and holds_secret(HUB)
    assert not holds_secret("https://host:8080/v1") and not holds_secret("Say 'api_key: abcdefgh' in your answer")


def test_texts_inside_values_are_hidden_and_numbers_stay():
    value = {HUB: [1, 2.5, None, True, (HUB, {"a": f"x {HUB}"})], "n": 12345678}
    assert redacted_values(value) == {HUB: [1, 2.5, None, True, ["***", {"a": "x ***"}]], "n": 12345678}


def test_a_stream_hides_secrets_and_is_otherwise_the_same(tmp_path):
    with open(tmp_path / "log", "w") as file:
        stream = RedactedStream(file)
        print("key", HUB, file=stream)
        stream.writelines([f"{HUB}\n"])
        assert stream.fileno() == file.fileno() and stream.encoding == file.encoding and not stream.isatty()
        assert stream.write(HUB) == len(HUB)
    assert (tmp_path / "log").read_text() == "key ***\n***\n***"
