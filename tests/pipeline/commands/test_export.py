"""`tokenuq export` on a store with a tiny trained model: what is written where, and what is refused before or after."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.exported import Exporting, held_out
from tests.support.fake_hub_writes import Repository, writable_hub
from tests.support.manifests import complete, edit
from tests.support.reporter import RecordingReporter
from tests.support.tiny_store import manifest
from tests.support.tiny_study import STUDY
from tokenuq_ml.errors import InputError
from tokenuq_ml.stages import export_model
from tokenuq_ml.stages.input_files import verify_inputs
from tokenuq_pipeline import cli
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.commands import export_process
from tokenuq_pipeline.runtime.places import manifest_place
from tokenuq_pipeline.runtime.store import Store

pytestmark = pytest.mark.slow
MODEL, STUDENT = f"{STUDY}/paper_top25", f"{STUDY}/paper_top25/student"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with the base model, the tokens and one student; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    exporting = Exporting(folder / "given")
    store, assets = Store(folder / "store"), assets_by_name(exporting.config)
    contents = {
        "models/tiny_llama": {"weights": exporting.base},
        f"{STUDY}/tokenized_dataset": {"tokenized_dataset": exporting.tokens},
        STUDENT: {"adapter": exporting.weights},
    }
    for name, outputs in contents.items():
        asset = assets[name]
        for output, source in outputs.items():
            shutil.copytree(source, store.path(asset.outputs[output]))
        versions = {"/".join(path): "d" for path in asset.reads}
        places = {output: asset.outputs[output] for output in outputs}
        own = {"fields": asset.fields, "code_version": asset.code_version, "input_data_versions": versions}
        complete(store, manifest(name, outputs=places, metrics={"steps": 7}, **own))
    return exporting, store


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """A copy of the store, named by the environment with its configuration alone."""
    exporting, original = made
    shutil.copytree(original.home, tmp_path / "store")
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path / "store"))
    monkeypatch.setattr("tokenuq_ml.config.shipped.shipped_config", lambda: exporting.folder / "config")
    for name in ("TOKENUQ_CONFIG", "LLAMA_CPP"):
        monkeypatch.delenv(name, raising=False)
    return Store(tmp_path / "store")


@pytest.fixture
def in_this_process(monkeypatch):
    """Run the program in this process; a child imports torch."""

    def run(source, folder):
        reporter = RecordingReporter()
        try:
            request = source.request(folder, folder.parent)
            verify_inputs(request, reporter)
            export_model.run(request, reporter)
        except InputError as error:
            print(f"error: {error}")
            return 2, None
        return 0, reporter.results[0].model_dump(mode="json")

    monkeypatch.setattr(export_process, "run_program", run)


def run(*arguments):
    return cli.main(["export", *map(str, arguments)])


@torch.no_grad()
def logits(model):
    return torch.cat([model(torch.tensor([list(text.input_ids)])).logits[0] for text in held_out()])


@pytest.mark.heavy
def test_a_child_process_writes_a_folder_that_plain_transformers_loads(store, tmp_path, made, capfd):
    (tmp_path / "out").mkdir()
    assert run(MODEL, "--merge", tmp_path / "out", "--dtype", "float32") == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"{MODEL}: float32, ") and "equals base model plus adapter on 2 examples" in out
    assert f"{MODEL}: merging, and writing float32 weights" in err
    assert f"{STUDY}/paper_top25/evaluation was never made: the model card is without its figures" in err
    base = AutoModelForCausalLM.from_pretrained(made[0].base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, made[0].weights).eval()
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, logits(adapted), atol=1e-4, rtol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "This model was not evaluated." in card and "| optimiser steps | 7 |" in card
    assert not list(tmp_path.glob(".*")) and str(tmp_path) not in card


@pytest.mark.usefixtures("in_this_process")
def test_a_gguf_file_is_the_only_thing_that_is_written(store, tmp_path, capsys):
    assert run(MODEL, "--gguf", tmp_path / "m.gguf", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == str(tmp_path / "m.gguf") and found["kind"] == "gguf" and found["dtype"] == "float32"
    assert found["relative_difference"] < 1e-4 < found["change_by_training"]
    assert sorted(os.listdir(tmp_path)) == ["m.gguf", "store"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    assert logits(model).isfinite().all()


@pytest.mark.usefixtures("in_this_process")
def test_the_hub_gets_the_files_of_the_folder(store, tmp_path, capsys, monkeypatch):
    assert run(MODEL, "--merge", tmp_path / "out") == 0
    with writable_hub(monkeypatch) as hub:
        assert run(MODEL, "--hub", "me/model") == 0
        repository = hub.repositories["me/model"]
        assert repository.private and repository.messages == [f"Export of {MODEL} by tokenuq"]
        assert repository.files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert f"in {hub.address}/me/model/commit/" in capsys.readouterr().out
        assert not any((store.home / ".staging").iterdir())
        # Before anything is merged.
        hub.repositories["me/open"] = Repository(private=False)
        monkeypatch.setattr(export_process, "run_program", lambda *_: pytest.fail("was merged"))
        assert run(MODEL, "--hub", "me/open") == 2
        assert "the repository is public; add --public" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("target", ["--merge", "--gguf", "--hub"])
def test_what_is_not_equal_leaves_nothing_behind(store, tmp_path, monkeypatch, capsys, target):
    monkeypatch.setattr(PeftModel, "merge_and_unload", lambda self, **_: self.unload(), raising=False)
    place = {"--merge": tmp_path / "out", "--gguf": tmp_path / "out.gguf", "--hub": "me/model"}[target]
    with writable_hub(monkeypatch) as hub:
        assert run(MODEL, target, place) == 2
        assert not hub.repositories and os.listdir(tmp_path) == ["store"]
    assert "does not give the logits of base model plus adapter" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_export_leaves_nothing_behind(store, tmp_path, monkeypatch, number):
    killed = []

    def stop(source, folder):
        (folder / "part").touch()
        assert signal.getsignal(number) != signal.SIG_DFL
        signal.raise_signal(number)

    monkeypatch.setattr(export_process, "run_program", stop)
    # The last step is to end this process by the same signal.
    monkeypatch.setattr(os, "kill", lambda *ended: killed.append(ended))
    # Ignored in what nohup starts, which the command respects.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(BaseException, match=str(int(number))):
            run(MODEL, "--merge", tmp_path / "out")
    finally:
        signal.signal(number, before)
    assert killed == [(os.getpid(), number)] and os.listdir(tmp_path) == ["store"]


def test_the_program_ends_with_the_command(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\necho started\nexec sleep 300\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))

    class Source:
        def request(self, folder, work):
            return self

        def write(self, path):
            path.touch()

    monkeypatch.setattr(sys.stderr, "write", lambda text: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_process.run_program(Source(), tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.usefixtures("in_this_process")
def test_a_folder_that_appears_meanwhile_is_kept(store, tmp_path, monkeypatch, capsys):
    out, merged = tmp_path / "out", export_process.run_program

    def run_program(source, folder):
        out.mkdir()
        (out / "mine").touch()
        return merged(source, folder)

    monkeypatch.setattr(export_process, "run_program", run_program)
    assert run(MODEL, "--merge", out) == 2
    assert "something was put there meanwhile" in capsys.readouterr().err and os.listdir(out) == ["mine"]
    assert sorted(os.listdir(tmp_path)) == ["out", "store"]


def test_a_mount_point_is_refused_before_anything_is_merged(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path / "out")
    assert run(MODEL, "--merge", tmp_path / "out") == 2
    assert "is a mount point, which cannot be replaced; name a new folder in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([STUDY, "--vllm"], "name an ablation as STUDY/ABLATION"),
        ([f"{STUDY}/nobody", "--vllm"], f"{STUDY} has no ablation 'nobody'; allowed: mle, masked_mle_top25"),
        ([f"{STUDY}/base", "--vllm"], "'base' is the base model"),
        (["other/mle", "--vllm"], "no study 'other'"),
        (
            [f"{STUDY}/mle", "--vllm"],
            f"{STUDY}/mle/student: was never made; run `tokenuq run --study {STUDY} --ablation mle`",
        ),
        ([MODEL, "--vllm", "--dtype", "float32"], "--vllm writes no weights"),
        ([MODEL, "--merge", "x", "--public"], "--public goes with --hub"),
        ([MODEL, "--merge", "{tmp}/full"], "the folder is not empty"),
        ([MODEL, "--merge", "{tmp}/no/out"], "there is no folder"),
        ([MODEL, "--merge", "{tmp}/store/out"], "is in the store"),
        ([MODEL, "--merge", "{tmp}/full/file"], "is not a folder"),
        ([MODEL, "--gguf", "{tmp}/x.bin"], "name a file that ends in .gguf"),
        ([MODEL, "--gguf", "{tmp}/full/old.gguf"], "the file exists"),
    ],
)
def test_what_cannot_be_exported_or_written_is_refused_in_a_sentence(store, tmp_path, capsys, arguments, sentence):
    (tmp_path / "full").mkdir()
    for name in ("file", "old.gguf"):
        (tmp_path / "full" / name).touch()
    assert run(*(each.replace("{tmp}", str(tmp_path)) for each in arguments)) == 2
    assert sentence in capsys.readouterr().err


def manifest_of(store, asset):
    return store.home / manifest_place(asset)


def test_a_model_of_another_configuration_or_base_is_refused(store, capsys):
    edit(manifest_of(store, STUDENT), code_version="3-other")
    assert run(MODEL, "--vllm", "--stale") == 2
    assert f"{STUDENT}: is of another configuration" in capsys.readouterr().err


def test_a_model_of_another_base_is_refused_whatever_is_said(store, capsys):
    edit(manifest_of(store, "models/tiny_llama"), data_version="new")
    assert run(MODEL, "--vllm", "--stale") == 2
    assert "was trained on another version of models/tiny_llama" in capsys.readouterr().err


def test_a_stale_model_needs_a_word(store, capsys):
    edit(manifest_of(store, f"{STUDY}/tokenized_dataset"), data_version="new")
    assert run(MODEL, "--vllm") == 2
    assert (
        f"is stale ({STUDY}/tokenized_dataset has changed)" in (error := capsys.readouterr().err) and "--stale" in error
    )
    assert run(MODEL, "--vllm", "--stale") == 0
    assert "is exported as it is" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_a_damaged_adapter_is_refused(store, tmp_path, capsys):
    path = next(store.home.rglob("adapter_model.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run(MODEL, "--merge", tmp_path / "out") == 2
    assert "adapter_model.safetensors" in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_vllm_gets_a_command_that_names_base_and_adapter(store, capsys):
    assert run(MODEL, "--vllm", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found["arguments"][:3] == ["vllm", "serve", str(store.path("models/tiny_llama"))]
    assert found["arguments"][-1].startswith(f"{STUDY}-paper_top25={store.home}") and "not installed" in err
