"""The scripts in examples/: one is run as a user runs it, those that train are run in this process."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from tests.support.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def example(tmp_path, monkeypatch):
    """A function that imports an example into this process, which has loaded torch already."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    yield importlib.import_module
    for path in EXAMPLES:
        sys.modules.pop(path.stem, None)
    assert list(tmp_path.iterdir()) == []


def output_of(name: str, folder) -> str:
    """Run an example in an empty folder and return what it prints."""
    command = [sys.executable, str(ROOT / "examples" / name)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


@pytest.mark.slow
def test_own_trainer_lowers_the_training_loss_with_both_objectives(example, monkeypatch, capsys):
    own_trainer = example("own_trainer")
    monkeypatch.setattr(own_trainer, "STEPS", own_trainer.STEPS // 2)
    own_trainer.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^(random|baseline|more MLE|paper) +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
    losses = {name: float(on_training_sums) for name, on_training_sums, _ in rows}
    assert list(losses) == ["random", "baseline", "more MLE", "paper"]
    for trained in ("more MLE", "paper"):
        assert losses[trained] < losses["baseline"] < losses["random"]


@pytest.mark.slow
def test_own_selector_trains_the_tokens_that_its_function_selects(example, capsys):
    example("own_selector").main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^(mle|own selector|own objective) +(\d+)% +([\d.]+)$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["mle", "own selector", "own objective"]
    selected = {name: int(share) for name, share, _ in rows}
    assert selected["mle"] == selected["own objective"] == 100
    assert 10 < selected["own selector"] < 60
    assert all(float(loss) < 2 for *_, loss in rows), "an untrained model has a loss of ln(128) = 4.9"


@pytest.mark.slow
def test_score_and_query_prints_both_queries(tmp_path):
    printed = output_of("score_and_query.py", tmp_path)
    by_category = dict(re.findall(r"^\u2502 (\w+) +\u2502 +(\d+) \u2502", printed, re.MULTILINE))
    assert {"word", "subword", "punctuation", "number"} <= set(by_category)
    highest = [float(value) for value in re.findall(r"^\u2502 texts/.*\u2506 ([\d.]+) +\u2502$", printed, re.MULTILINE)]
    assert len(highest) == 5 and highest == sorted(highest, reverse=True) and highest[-1] > 0


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_listed_and_explains_itself(path):
    assert f"[{path.name}]({path.name})" in (ROOT / "examples" / "README.md").read_text()
    assert path.read_text().startswith('"""')
    assert "import tests" not in path.read_text() and "from tests" not in path.read_text()
