"""What is said of a hub that does not give: real errors of a hub on this machine, each with its mend."""

import time

import pytest
from huggingface_hub import constants, hf_hub_download

from tests.support.fake_hub import REFUSALS, fake_hub
from tokenuq_ml import hub_errors


def refused(call) -> Exception:
    """The error as transformers and datasets pass it on: wrapped in one of their own."""
    with pytest.raises(Exception) as raised:
        try:
            call()
        except Exception as error:
            raise OSError("it did not work\nfor some reason") from error
    return raised.value


SENTENCES = {
    "gated": "o/r is gated: accept its licence at {hub}/o/r, then run `hf auth login` or set HF_TOKEN; or fetch it",
    "missing": "the hub has no model o/r, or it is private: mend `id:`, or run `hf auth login` or set HF_TOKEN if it",
    "revision": "o/r has no such revision: mend `revision:`; {hub}/o/r lists them",
    "token": "the hub refuses the token that it was given (401) for o/r: run `hf auth login` or set HF_TOKEN anew",
    "forbidden": "the hub refuses the token that it was given (403) for o/r",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_each_refusal_has_its_mend(tmp_path, monkeypatch, refusal):
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, refusal) as address:
        error = refused(lambda: hf_hub_download("o/r", "config.json"))
        said = hub_errors.why(error, "o/r")
        assert said.startswith(SENTENCES[refusal].format(hub=address)) and "\n" not in said
        assert hub_errors.is_hub_error(error)


def test_a_missing_file_an_odd_id_and_a_dataset(tmp_path, monkeypatch):
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path) as address:
        missing = refused(lambda: hf_hub_download("o/r", "config.json"))
        assert hub_errors.why(missing, "o/r").startswith(
            "o/r lacks a file that is needed (it did not work): mend `id:`"
        )
        odd = refused(lambda: hf_hub_download("a/b/c", "config.json"))
        assert hub_errors.why(odd, "a/b/c").startswith("'a/b/c' is no id of the hub: mend `id:`, which is owner/name")
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, "gated") as address:
        gated = refused(lambda: hf_hub_download("o/d", "a.json", repo_type="dataset"))
        said = hub_errors.why(gated, "o/d", "dataset")
    assert f"{address}/datasets/o/d" in said and "`hf download o/d --repo-type dataset --local-dir DIR`" in said


def test_offline_and_unreachable(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert constants.is_offline_mode()
    error = refused(lambda: hf_hub_download("o/r", "config.json"))
    assert hub_errors.why(error, "o/r").startswith(
        "o/r is not in the local cache, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE)"
    )
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path) as address:
        pass
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    error = refused(lambda: hf_hub_download("o/r", "config.json"))
    said = hub_errors.why(error, "o/r")
    assert said.startswith(f"{address} cannot be reached: check the network and its proxy, or fetch it elsewhere")
    assert said.endswith("name that folder as `path:`")


def test_other_errors_are_not_the_hubs():
    assert not hub_errors.is_hub_error(refused(lambda: int("x")))
    assert (
        hub_errors.first_line(ValueError("a\nb")) == "a"
        and hub_errors.first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    )
