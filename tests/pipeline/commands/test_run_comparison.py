"""Comparisons that ask for further ablations: `tokenuq run --comparison` makes them until nothing is asked for."""

import argparse
import json

import pytest

from tests.support.toy_pipeline import STUDY, Toy, toy_config
from tokenuq_ml.config.comparison import FURTHER, ComparisonSpec
from tokenuq_pipeline.assets.graph import assets_by_name
from tokenuq_pipeline.automation.comparison_targets import study_targets
from tokenuq_pipeline.automation.staleness import keys_of
from tokenuq_pipeline.commands import run_comparison, status
from tokenuq_pipeline.runtime.store_layout import comparison_path

PAGE = "comparisons/page"


class InRounds(ComparisonSpec):
    """Needs `mle`, and reads `top` if it was made."""

    ABLATION_TABLES = ("evaluation_examples",)

    def optional_ablations(self, study, ablations):
        return frozenset({"top"})


@pytest.fixture
def config():
    made = toy_config()
    made.comparisons["page"] = InRounds(name="page", kind="rounds", studies=(STUDY,))
    return made


@pytest.fixture
def run(config, tmp_path, monkeypatch):
    """`tokenuq run --comparison page` whose page asks for `asked`, one after the other; returns the code and calls."""
    store, calls = Toy(tmp_path).store, []
    page = store.home / comparison_path("page")
    page.mkdir(parents=True)

    def run_study(options, config, study, keys, output):
        calls.append((study, {key.path[1] for key in keys if key.path[0] == STUDY and len(key.path) == 3}))
        return codes.pop(0) if codes else 0

    def make_page(config, name, output):
        calls.append(name)
        (page / FURTHER).unlink(missing_ok=True)
        if asked:
            (page / FURTHER).write_text(json.dumps(asked.pop(0)))
        return 0

    monkeypatch.setenv("TOKENUQ_HOME", str(store.home))
    monkeypatch.setattr(run_comparison, "configuration", lambda: config)
    monkeypatch.setattr(run_comparison, "make_of_study", run_study)
    monkeypatch.setattr(run_comparison, "_make_page", make_page)
    monkeypatch.setattr(run_comparison, "print_comparison", lambda *_: calls.append("shown"))
    monkeypatch.setattr(run_comparison, "comparison_as_json", lambda store, name: {"comparison": name, "page": "p"})
    asked, codes = [], []

    def command(*further, failing=(), as_json=False):
        asked[:], codes[:] = further, failing
        options = argparse.Namespace(comparison="page", ablation=None, ignore_disk_space=True, plain=True, json=as_json)
        return run_comparison.run_comparison(options), calls

    return command


def test_what_a_page_asks_for_is_made_and_then_the_page_again(run, capfd):
    assert run({STUDY: ["top"]}) == (0, [(STUDY, {"mle"}), "page", (STUDY, {"mle", "top"}), "page", "shown"])
    assert "page: 1 more training in 1 study, for what is undecided" in capfd.readouterr().out


def test_a_page_that_asks_for_nothing_is_shown(run):
    assert run() == (0, [(STUDY, {"mle"}), "page", "shown"])


def test_json_is_one_object_and_all_else_goes_to_standard_error(run, capfd):
    run({STUDY: ["top"]}, as_json=True)
    out, err = capfd.readouterr()
    assert json.loads(out) == {"comparison": "page", "page": "p", "exit_code": 0, "runs": []}
    assert "page: 1 more training" in err
    run(failing=[1], as_json=True)
    assert json.loads(capfd.readouterr().out) == {"comparison": "page", "exit_code": 1, "runs": []}


def test_a_failure_ends_the_rounds(run):
    assert run({STUDY: ["top"]}, failing=[0, 1]) == (1, [(STUDY, {"mle"}), "page", (STUDY, {"mle", "top"})])


def test_what_was_never_made_and_is_not_needed_is_not_missing(config, tmp_path):
    store = Toy(tmp_path).store
    assets = {asset.key: asset for asset in assets_by_name(config).values()}
    names = {key.to_user_string() for key in keys_of(assets, PAGE, store)}
    assert {PAGE, f"{STUDY}/mle/evaluation"} < names and f"{STUDY}/top/evaluation" not in names
    assert set(status.needed(config, PAGE, store)) == names
    assert set(status.needed(config, PAGE)) == names | {f"{STUDY}/top/{one}" for one in ("student", "evaluation")} | {
        f"{STUDY}/teacher_hidden"
    }
    store.read_manifest = lambda name: name if name.endswith("top/evaluation") else None
    assert set(status.needed(config, PAGE, store)) == set(status.needed(config, PAGE))
    targets = study_targets(config, config.comparisons["page"], store)[STUDY]
    assert f"{STUDY}/top/student" in {key.to_user_string() for key in targets}
