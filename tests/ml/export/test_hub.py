"""A folder on the hub: what a server on this machine receives, who may see it, and sentences for what goes wrong."""

import socket

import pytest
from huggingface_hub import constants

from tests.support.fake_hub_writes import Repository, writable_hub
from tokenuq_ml.errors import InputError
from tokenuq_ml.export.hub import check_repo, publish


@pytest.fixture
def folder(tmp_path):
    for name, content in (
        ("model.safetensors", b"\x00weights" * 500),
        ("README.md", b"# card"),
        ("config.json", b"{}"),
    ):
        (tmp_path / name).write_bytes(content)
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_new_repository_is_private_and_has_the_files_of_the_folder(folder, monkeypatch):
    with writable_hub(monkeypatch) as hub:
        check_repo("me/model", public=False)
        assert hub.repositories == {}
        url = publish(folder, "me/model", public=False, message="Export of study/mle")
        repository = hub.repositories["me/model"]
        assert repository.private and repository.messages == ["Export of study/mle"]
        assert repository.files == contents(folder) and url.startswith(f"{hub.address}/me/model/commit/")
        publish(folder, "me/open", public=True, message="x")
        assert not hub.repositories["me/open"].private


def test_weights_of_an_earlier_version_go_and_other_files_stay(folder, monkeypatch):
    old = {"model-00002-of-00002.safetensors": b"old", "model.safetensors.index.json": b"{}", "notes.md": b"mine"}
    # With its config, transformers would load the base model of an adapter that was there before.
    old |= {"adapter_config.json": b"{}", "adapter_model.safetensors": b"old"}
    with writable_hub(monkeypatch) as hub:
        hub.repositories["me/model"] = Repository(private=True, files=old)
        check_repo("me/model", public=False)
        publish(folder, "me/model", public=False, message="x")
        assert hub.repositories["me/model"].files == contents(folder) | {"notes.md": b"mine"}


def test_who_sees_it_is_what_was_asked_for(monkeypatch):
    with writable_hub(monkeypatch) as hub:
        hub.repositories |= {"me/open": Repository(private=False), "me/closed": Repository(private=True)}
        with pytest.raises(InputError, match="me/open: the repository is public; add --public"):
            check_repo("me/open", public=False)
        with pytest.raises(InputError, match="me/closed: the repository is private, and --public does not change that"):
            check_repo("me/closed", public=True)
        check_repo("me/open", public=True)


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/--", "me/a b"])
def test_what_is_no_id_is_refused(name, monkeypatch):
    with writable_hub(monkeypatch), pytest.raises(InputError, match="is not an id of the hub"):
        check_repo(name, public=False)


def test_no_token_and_a_wrong_one_are_told(folder, monkeypatch):
    with writable_hub(monkeypatch, token=None), pytest.raises(InputError, match="no access token; run `hf auth login`"):
        check_repo("me/model", public=False)
    with writable_hub(monkeypatch, token="hf_wrong") as hub:
        with pytest.raises(InputError, match=r"the hub rejects the access token \(401\)"):
            check_repo("me/model", public=False)
        with pytest.raises(InputError, match=r"the hub rejects the access token \(401\)"):
            publish(folder, "me/model", public=False, message="x")
        assert not hub.repositories


def test_a_token_without_the_right_to_write_is_told(folder, monkeypatch):
    with writable_hub(monkeypatch) as hub:
        hub.refuses_to_create = True
        with pytest.raises(InputError, match=r"the token may not write there \(403 .*rights to create"):
            publish(folder, "other/model", public=False, message="x")


def test_no_network_and_offline_mode_are_told(folder, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with writable_hub(monkeypatch):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(InputError, match=f"{address} cannot be reached .*; check the network"):
            check_repo("me/model", public=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(InputError, match="HF_HUB_OFFLINE .* is set; unset it to publish"):
            publish(folder, "me/model", public=False, message="x")
