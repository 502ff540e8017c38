"""The Python examples of README, CONTRIBUTING and docs/library.md run as written."""

import shutil

import pytest

from tests.support.markdown import fenced_blocks
from tests.support.paths import ROOT
from tests.support.tiny_models import tiny_peft
from tests.support.tiny_store import make_store
from tests.support.tiny_tokenizer import tiny_tokenizer


def example(page: str, marker: str) -> str:
    """The only Python block of the page that contains the marker."""
    (block,) = [block for block in fenced_blocks((ROOT / page).read_text(), "python") if marker in block]
    return block


@pytest.mark.parametrize("function", ["score_tokens", "measure_bald"])
def test_texts_are_scored_as_the_page_shows(function, capsys):
    model = tiny_peft(vocab=400)
    exec(
        example("docs/library.md", f"import {function}\n"),
        {"model": model, "peft_model": model, "tokenizer": tiny_tokenizer()},
    )
    assert "token" in capsys.readouterr().out


def test_the_public_names_of_the_page_are_all_that_there_are():
    import tokenuq_ml

    names = {}
    exec(example("docs/library.md", "AblationSpec"), names)
    assert set(tokenuq_ml.__all__) - {"__version__"} == set(names) - {"__builtins__"}


def test_readme_and_library_page_show_the_same_trainer():
    assert example("README.md", "SFTTrainer") == example("docs/library.md", "SFTTrainer")


def test_the_query_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(make_store(tmp_path).home))
    exec(example("README.md", "connect()"), {})
    assert "avg(bald)" in capsys.readouterr().out


def test_the_comparison_of_data_versions_finds_what_changed(tmp_path, capsys):
    before, after = tmp_path / "before", tmp_path / "after"
    make_store(before)
    shutil.copytree(before, after)
    script = example("CONTRIBUTING.md", "data_versions")
    script = script.replace("/tmp/before", str(before)).replace("/tmp/after", str(after))
    exec(script, {})
    assert "changed: none" in capsys.readouterr().out
    manifest = after / ".manifests/quickstart/token_losses.json"
    manifest.write_text(manifest.read_text().replace('"data_version": "d"', '"data_version": "e"'))
    exec(script, {})
    assert "changed: quickstart/token_losses\n" in capsys.readouterr().out
