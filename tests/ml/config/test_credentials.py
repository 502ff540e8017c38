"""Keys and passwords in the configuration are refused, with the variable that holds them instead."""

import pytest
import yaml
from pydantic import ValidationError

from tokenuq_ml.config.credentials import check_no_credentials
from tokenuq_ml.config.evaluation import JudgeSpec
from tokenuq_ml.config.load import load_config
from tokenuq_ml.errors import InputError

TOKEN = "hf_" + "aBcDeFgHiJ" * 3
DATASET = {"format": "messages", "path": "/data/rows.jsonl", "sizes": {"train": 2, "validation": 1, "test": 1}}


@pytest.mark.parametrize(
    "url",
    ["https://me:word@host/v1", "https://token@host/v1", "https://host/v1?api_key=abc", "https://host/v1?token=abc"]
    + [f"https://host/{TOKEN}/v1"],
)
def test_a_judge_whose_address_holds_a_key_is_refused_with_the_remedy(url):
    with pytest.raises(ValidationError, match="api_key_env") as refused:
        JudgeSpec(base_url=url, model="judge")
    assert "holds a password or key" in refused.value.errors()[0]["msg"]


@pytest.mark.parametrize("url", ["host/v1", "ftp://host/v1", "https://", "file:///etc/passwd"])
def test_a_judge_needs_an_address(url):
    with pytest.raises(ValidationError, match="must be an address"):
        JudgeSpec(base_url=url, model="judge")


def test_the_key_in_place_of_its_variable_is_refused():
    with pytest.raises(ValidationError, match="name of an environment variable"):
        JudgeSpec(base_url="https://host/v1", model="judge", api_key_env="sk-abcdefgh01234567")
    assert JudgeSpec(base_url="http://127.0.0.1:8000/v1", model="judge", api_key_env="JUDGE_KEY")


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"path": "https://me:word@host/rows.jsonl"}, ".path"),
        ({"path": "s3://key:secret@bucket/rows"}, ".path"),
        ({"trainer": {"hub_token": TOKEN}}, ".trainer.hub_token"),
        ({"list": ["a", "https://host/x?sig=0a1b2c"]}, ".list.1"),
        ({TOKEN: 1}, ""),
    ],
)
def test_credentials_anywhere_in_an_entry_are_refused_and_not_repeated(raw, key):
    with pytest.raises(InputError, match="HF_TOKEN") as refused:
        check_no_credentials("datasets.yaml: d", raw)
    message = str(refused.value)
    assert message.startswith(f"datasets.yaml: d{key}: holds") and TOKEN not in message and "word@" not in message


def test_ordinary_entries_are_accepted():
    check_no_credentials(
        "x", {"path": "s3://bucket/a@b", "id": "owner/name", "n": 3, "prompt": "Mail me@host.org: why?"}
    )


def test_a_variable_that_holds_credentials_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setenv("ROWS", "https://me:word@host/rows.jsonl")
    for kind in ("models", "datasets", "studies", "ablations"):
        entries = {"d": DATASET | {"path": "$ROWS"}} if kind == "datasets" else {}
        (tmp_path / f"{kind}.yaml").write_text(yaml.safe_dump(entries))
    with pytest.raises(InputError, match=r"datasets.yaml: d\.path: holds a password"):
        load_config(tmp_path)
