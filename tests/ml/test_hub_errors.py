"""Real errors of a hub on this machine become messages that say what to do."""

import time

import pytest
from huggingface_hub import constants, hf_hub_download

from tests.support.fake_hub import REFUSALS, fake_hub
from tokenuq_ml import hub_errors

pytestmark = pytest.mark.slow


def refused(call) -> Exception:
    """The error as transformers and datasets pass it on: wrapped in one of their own."""
    with pytest.raises(Exception) as raised:
        try:
            call()
        except Exception as error:
            raise OSError("it did not work\nfor some reason") from error
    return raised.value


SENTENCES = {
    "gated": "o/r is gated: accept its licence at {hub}/o/r, then run `hf auth login` or set HF_TOKEN; or download it",
    "missing": "the hub has no model o/r, or it is private: correct `id:`, or run `hf auth login` or set HF_TOKEN if",
    "revision": "o/r has no such revision: correct `revision:`; {hub}/o/r lists them",
    "token": "the hub rejects the access token (401) for o/r: run `hf auth login` or set HF_TOKEN with a valid one",
    "forbidden": "the hub rejects the access token (403) for o/r",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_each_refusal_says_what_to_do(tmp_path, monkeypatch, refusal):
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, refusal) as address:
        error = refused(lambda: hf_hub_download("o/r", "config.json"))
        message = hub_errors.explain(error, "o/r")
        assert message.startswith(SENTENCES[refusal].format(hub=address)) and "\n" not in message
        assert hub_errors.is_hub_error(error)


def test_a_missing_file_an_invalid_id_and_a_dataset_are_named(tmp_path, monkeypatch):
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path) as address:
        missing = refused(lambda: hf_hub_download("o/r", "config.json"))
        assert hub_errors.explain(missing, "o/r").startswith(
            "o/r lacks a required file (it did not work): correct `id:`"
        )
        odd = refused(lambda: hf_hub_download("a/b/c", "config.json"))
        assert hub_errors.explain(odd, "a/b/c").startswith(
            "'a/b/c' is not a valid hub id: correct `id:`, which is owner/name"
        )
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, "gated") as address:
        gated = refused(lambda: hf_hub_download("o/d", "a.json", repo_type="dataset"))
        message = hub_errors.explain(gated, "o/d", "dataset")
    assert f"{address}/datasets/o/d" in message and "`hf download o/d --repo-type dataset --local-dir DIR`" in message


def test_offline_mode_and_an_unreachable_hub_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert constants.is_offline_mode()
    error = refused(lambda: hf_hub_download("o/r", "config.json"))
    assert hub_errors.explain(error, "o/r").startswith(
        "o/r is not in the local cache, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)"
    )
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path) as address:
        pass
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    error = refused(lambda: hf_hub_download("o/r", "config.json"))
    message = hub_errors.explain(error, "o/r")
    assert message.startswith(f"{address} cannot be reached: check the network and its proxy, or download it elsewhere")
    assert message.endswith("name that folder as `path:`")


def test_other_errors_are_not_the_hubs():
    assert not hub_errors.is_hub_error(refused(lambda: int("x")))
    assert (
        hub_errors.first_line(ValueError("a\nb")) == "a"
        and hub_errors.first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    )
