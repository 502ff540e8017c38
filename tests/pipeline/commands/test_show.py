"""`tokenuq show` on a small store: its choice of examples, its numbers, its page, and its errors."""

import base64
import json

import polars as pl
import pytest

from tests.support import tiny_tables
from tests.support.explorer_data import unpack
from tokenuq_ml.stages.correlate import joined_tokens
from tokenuq_ml.tables.parquet import write_table
from tokenuq_pipeline.cli import main

TOKENS = joined_tokens(*tiny_tables.losses_and_uncertainty())


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = tmp_path_factory.mktemp("store")
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    train = TOKENS.filter(split="train")
    selections = pl.concat(
        train.select(
            pl.lit(step, pl.Int32).alias("step"),
            pl.lit(1.0, pl.Float32).alias("epoch"),
            "example_id",
            "position",
            "loss",
            selected=pl.col("position") < step,
            objective=pl.lit("mle"),
        )
        for step in (3, 5)
    )
    frames = {
        "token_losses/study=toy": losses,
        "token_uncertainty/study=toy": uncertainty,
        "token_alternatives/study=toy": tiny_tables.alternatives(losses),
        "selections/study=toy/ablation=mle": selections.with_columns(selected=True),
        "selections/study=toy/ablation=top": selections,
        "evaluation_tokens/study=toy/ablation=top": tiny_tables.evaluation_tokens(losses, 0.1),
        "examples/dataset=toy": tiny_tables.examples_table(),
    }
    for path, frame in frames.items():
        write_table(frame, path.partition("/")[0], home / path, spec_hash="s", code_version="c")
    return home


@pytest.fixture
def show(store, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(store))

    def run(*arguments):
        code = main(["show", "--study", "toy", *arguments])
        return code, *capsys.readouterr()

    return run


def shown_ids(out: str) -> list[str]:
    return [line.split()[0] for line in out.splitlines() if line.startswith("toy/")]


def test_the_most_uncertain_by_mean_bald(show):
    means = TOKENS.group_by("example_id", "split").agg(pl.col("bald").mean()).sort("bald", descending=True)
    code, out, _ = show("--most-uncertain", "2")
    assert code == 0 and shown_ids(out) == means["example_id"].head(2).to_list()
    _, out, _ = show("--split", "test")
    assert shown_ids(out) == means.filter(split="test")["example_id"].head(3).to_list()


def test_one_example_with_its_prompt_and_highest_tokens(show):
    _, out, _ = show("--example", "toy/002", "--by", "bald")
    rows = TOKENS.filter(example_id="toy/002").sort("bald", descending=True)
    assert "\x1b" not in out and "q2" in out.splitlines()
    table = out.partition("position  token")[2].splitlines()[1:]
    listed = [int(line.split()[0]) for line in table if line.strip()]
    assert listed == rows["position"].head(8).to_list()
    assert f"{rows['bald'][0]:.4g}" in out


@pytest.mark.parametrize("step, count", [((), 5), (("--step", "3"), 3)])
def test_what_an_ablation_selected_at_a_step_or_the_last(show, step, count):
    code, out, _ = show("--example", "toy/000", "--by", "selected", "--ablation", "top", *step)
    assert code == 0 and f"{count} selected by top" in out


def test_without_a_name_the_selection_is_of_an_ablation_that_leaves_tokens_out(show):
    code, out, _ = show("--by", "selected", "--most-uncertain", "1")
    train = TOKENS.filter(split="train").group_by("example_id").agg(pl.col("bald").mean()).sort("bald")
    assert code == 0 and "5 selected by top" in out and shown_ids(out) == [train["example_id"][-1]]


def test_the_page_holds_the_examples_and_all_students(show, tmp_path):
    path = tmp_path / "page.html"
    code, out, _ = show("--example", "toy/000", "--example", "toy/002", "--html", str(path))
    page = path.read_text(encoding="utf-8")
    assert code == 0 and f"page: {path}" in out and "http" not in page
    data = page.partition('id="explorer-data">')[2].partition("<")[0]
    header, _ = unpack(base64.b64decode(data))
    assert [example["example_id"] for example in header["examples"]] == ["toy/000", "toy/002"]
    assert header["models"] == ["base", "teacher", "top", "mle"]
    assert header["examples"][1]["prompt"] == "q2"
    assert [(model, example) for model, example, _ in header["scored"]] == [(2, 1)]
    assert [entry[:3] for entry in header["passes"]] == [[2, 0, 3], [2, 0, 5], [3, 0, 3], [3, 0, 5]]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--example", "toy/02"], "--example toy/02: no such example; there are 16, e.g. toy/0"),
        (["--by", "selected", "--ablation", "odd"], "no selections of odd"),
        (["--by", "selected", "--ablation", "top", "--example", "toy/002"], "top did not train on toy/002"),
        (["--by", "selected", "--ablation", "top", "--step", "4"], "no example has this split or step"),
        (["--step", "4"], "need --by selected"),
        (["--split", "test", "--example", "toy/002"], "--split goes with --most-uncertain"),
        (["--html", "/no/such/folder/page.html"], "there is no folder /no/such/folder"),
    ],
)
def test_a_wrong_request_gets_one_sentence(show, arguments, said):
    code, _, error = show(*arguments)
    assert code == 2 and error.startswith("error: ") and said in error and error.count("\n") == 1


def test_a_study_without_tables_is_named(store, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(store))
    assert main(["show", "--study", "other"]) == 2
    assert "study 'other' has no token tables" in capsys.readouterr().err


def test_json_has_every_token_of_the_examples(show):
    code, out, _ = show("--json", "--most-uncertain", "2")
    found = json.loads(out)
    assert code == 0 and len(found) == 2
    for example in found:
        own = TOKENS.filter(example_id=example["example_id"]).sort("position")
        assert [token["position"] for token in example["tokens"]] == own["position"].to_list()
        assert [token["loss"] for token in example["tokens"]] == pytest.approx(own["loss"].to_list())
        assert [token["bald"] for token in example["tokens"]] == pytest.approx(own["bald"].to_list())
        assert {token["category"] for token in example["tokens"]} == set(own["category"].cast(pl.String))
        assert example["split"] == own["split"].cast(pl.String)[0]
    assert [one["example_id"] for one in found] == shown_ids(show("--most-uncertain", "2")[1])
