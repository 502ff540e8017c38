"""`tokenuq curate` on a small store: what is listed and why, both formats, the way back, and wrong requests."""

import json
import math

import polars as pl
import pytest

from tests.support.toy_pipeline import toy_config
from tokenuq_ml.data.curation import read_review
from tokenuq_ml.scoring.review import SCHEMA
from tokenuq_ml.tables.parquet import write_table
from tokenuq_pipeline.cli import main
from tokenuq_pipeline.commands import curate

ANSWER = ["The", " sum", " of", " 2", " and", " 2", " is", " 5", ".", "<end>"]
FIRST = 20
EXAMPLES = 40
WRONG, REPEATED, UNSELECTED = 7, 11, 13


def token(number: int, place: int) -> dict:
    wrong = number == WRONG and place == 7
    return {
        "example_id": f"toy/{number:06d}",
        "position": FIRST + place,
        "dataset": "toy",
        "split": "validation" if number == EXAMPLES - 1 else "train",
        "token_id": place,
        "token": ANSWER[place],
        "category": "number" if ANSWER[place].strip().isdigit() else "word",
        "loss": 9.0 if wrong else 0.1 + 0.001 * number,
        "entropy": 0.05 if wrong else 0.1,
        "rank": 2 if wrong else 0,
        "base_loss": 1.0,
        "base_entropy": 1.0,
    }


def question(number: int) -> str:
    words = " ".join(f"word{number * 100 + place}" for place in range(30))
    return question(3) + " again" if number == REPEATED else words


def write(home):
    losses = pl.DataFrame([token(number, place) for number in range(EXAMPLES) for place in range(len(ANSWER))])
    uncertainty = losses.select(
        "example_id",
        "position",
        predictive_entropy=pl.lit(0.2),
        expected_entropy=pl.lit(0.1),
        bald=pl.lit(0.1),
        bald_std_error=pl.lit(0.01),
        mc_loss=pl.lit(1.0),
        n_samples=pl.lit(5),
    )
    selections = losses.filter(split="train").select(
        "example_id",
        "position",
        "loss",
        step=pl.lit(1),
        epoch=pl.lit(1.0),
        selected=(pl.col("position") % 2 == 0) & (pl.col("example_id") != f"toy/{UNSELECTED:06d}"),
        objective=pl.lit("mle"),
    )
    examples = pl.DataFrame(
        [
            {
                "example_id": f"toy/{number:06d}",
                "split": "validation" if number == EXAMPLES - 1 else "train",
                "messages": [
                    {"role": "user", "content": question(number)},
                    {"role": "assistant", "content": "".join(ANSWER[:-1])},
                ],
                "source": "{}",
            }
            for number in range(EXAMPLES)
        ]
    )
    alternatives = losses.filter(split="validation").select(
        "example_id", "position", choice=pl.lit(0), token_id=pl.lit(9), token=pl.lit(" 4"), probability=pl.lit(0.75)
    )
    frames = {
        "token_losses/study=study": losses,
        "token_uncertainty/study=study": uncertainty,
        "token_alternatives/study=study": alternatives,
        "selections/study=study/ablation=mle": selections.with_columns(selected=True),
        "selections/study=study/ablation=top": selections,
        "examples/dataset=toy": examples,
    }
    for place, frame in frames.items():
        write_table(frame, place.partition("/")[0], home / place, spec_hash="s", code_version="c")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    home = tmp_path_factory.mktemp("store")
    write(home)
    return home


@pytest.fixture
def run(store, monkeypatch, capsys):
    monkeypatch.setenv("TOKENUQ_HOME", str(store))
    monkeypatch.setattr(curate, "configuration", toy_config)

    def command(*arguments):
        code = main(["curate", "--study", "study", *map(str, arguments)])
        return code, *capsys.readouterr()

    return command


def review(run, path, *arguments) -> dict[str, dict]:
    code, _, error = run("--output", path, *arguments)
    assert code == 0 and not error
    frame = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)
    return {row["example_id"]: row for row in frame.iter_rows(named=True)}


def test_the_wrong_token_is_first_with_its_reason_and_place(run, tmp_path):
    rows = review(run, tmp_path / "review.parquet")
    row = rows[f"toy/{WRONG:06d}"]
    start = "".join(ANSWER).index(" 5")
    assert row["rank"] == 1 and row["suspect_spans"] == f"{start}..{start + 2}"
    assert row["answer"] == "The sum of 2 and 2 is⟦ 5⟧." and row["question"] == question(WRONG)
    assert row["reasons"].startswith(
        f"label noise: ' 5' (characters {start}..{start + 2}) has probability {math.exp(-9):.2g} under the teacher, "
        "whose entropy is 0.05 nats"
    )
    assert [row[name] for name in ("keep", "weight", "mask")] == [None] * 3
    assert row["study"] == "study"


def test_repeats_and_unselected_examples_follow_with_their_reasons(run, tmp_path):
    rows = review(run, tmp_path / "review.csv")
    repeated, unselected = rows[f"toy/{REPEATED:06d}"], rows[f"toy/{UNSELECTED:06d}"]
    assert f"of toy/{3:06d} (train)" in repeated["reasons"] and repeated["repeat_of"] == f"toy/{3:06d}"
    assert "never selected by top" in unselected["reasons"] and unselected["selected_share"] == 0
    assert sorted(row["rank"] for row in rows.values()) == list(range(1, len(rows) + 1))
    # One of 20 by score, and those with other reasons.
    assert len(rows) == math.ceil(0.05 * (EXAMPLES - 1)) + 2


def test_a_share_of_all_lists_all(run, tmp_path):
    assert len(review(run, tmp_path / "review.csv", "--top", 1)) == EXAMPLES - 1


def test_only_tokens_of_the_wanted_categories_are_suspect(run, tmp_path):
    rows = review(run, tmp_path / "review.parquet", "--tokens", "number", "--top", 1)
    assert rows[f"toy/{WRONG:06d}"]["rank"] == 1
    suspect = {row["answer"][row["answer"].index("⟦") : row["answer"].index("⟧") + 1] for row in rows.values()}
    assert suspect <= {"⟦ 2⟧", "⟦ 5⟧"}
    # The mean of the three numbers' loss minus entropy.
    assert rows["toy/000000"]["score"] == pytest.approx(0.0, abs=1e-6)
    assert rows[f"toy/{WRONG:06d}"]["score"] == pytest.approx((2 * 0.007 + 8.95) / 3, abs=1e-5)


def test_a_category_that_no_token_has_is_refused(run):
    code, _, error = run("--tokens", "code")
    assert code == 2 and "study study: no token of split 'train' is of code; it has number, word" in error


def test_held_out_examples_show_the_teachers_choice(run, tmp_path):
    (row,) = review(run, tmp_path / "review.csv", "--split", "validation").values()
    assert "and ' 4' has probability 0.75" in row["reasons"]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_filled_file_reads_back(run, tmp_path, suffix):
    path = tmp_path / f"review.{suffix}"
    rows = review(run, path)
    read = read_review(path)
    assert set(read.decisions) == set(rows) and not read.columns_not_read
    assert all(decision.keep and decision.weight is None for decision in read.decisions.values())
    assert read.decisions[f"toy/{WRONG:06d}"].token_spans


def test_without_output_the_first_rows_are_printed(run):
    code, out, _ = run()
    lines = out.splitlines()
    assert code == 0 and lines[0] == f"study: 4 of {EXAMPLES - 1} examples of toy (train) to review"
    assert any(line.split()[:2] == ["1", f"toy/{WRONG:06d}"] for line in lines)
    assert lines[-1] == "nothing is written; name a file with --output" and max(map(len, lines)) <= 140


def test_what_cannot_be_written_is_refused_before_anything_is_read(run, store, tmp_path):
    (tmp_path / "old.csv").write_text("decisions")
    for output, said in {
        tmp_path / "review.xlsx": "name a file that ends with .csv or .parquet",
        tmp_path / "old.csv": "exists, and may hold decisions",
        store / "review.csv": "is in the store",
        tmp_path / "none" / "review.csv": f"there is no folder {tmp_path / 'none'}",
    }.items():
        code, _, error = run("--output", output)
        assert code == 2 and said in error
    assert (tmp_path / "old.csv").read_text() == "decisions"


def test_wrong_studies_splits_and_shares(run, monkeypatch, tmp_path, capsys):
    assert "no token of dataset toy is in split 'test'" in run("--split", "test")[2]
    with pytest.raises(SystemExit):
        run("--top", "2")
    assert "not a share above 0" in capsys.readouterr().err
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path))
    assert "has no token tables" in run()[2]
    assert main(["curate", "--study", "nope"]) == 2


def test_pieces_of_raw_texts_cannot_be_reviewed(run, monkeypatch, tmp_path):
    write(tmp_path)
    folder = tmp_path / "examples" / "dataset=toy"
    rows = pl.read_parquet(folder / "part-0.parquet").filter(pl.col("example_id") != "toy/000000")
    write_table(rows, "examples", folder, spec_hash="s", code_version="c")
    monkeypatch.setenv("TOKENUQ_HOME", str(tmp_path))
    code, _, error = run()
    assert code == 2 and "dataset toy: 1 pieces of raw texts that are longer than the study's `max_length`" in error


def test_the_page_explains_every_column():
    from tests.support.paths import ROOT

    page = (ROOT / "docs" / "curation.md").read_text()
    assert [name for name in SCHEMA if f"`{name}`" not in page] == []


def test_json_lists_every_example_to_review(run, tmp_path):
    code, out, _ = run("--json", "--share", 1)
    found = json.loads(out)
    assert code == 0 and (found["study"], found["dataset"], found["split"]) == ("study", "toy", "train")
    assert len(found["to_review"]) == found["examples"] == EXAMPLES - 1 and found["output"] is None
    assert [row["rank"] for row in found["to_review"]] == list(range(1, EXAMPLES)) and found["to_review"][0]["reasons"]
    code, out, _ = run("--json", "--share", 1, "--output", tmp_path / "review.csv")
    assert json.loads(out) == {**found, "output": str(tmp_path / "review.csv")}
    assert len((tmp_path / "review.csv").read_text().splitlines()) >= EXAMPLES
