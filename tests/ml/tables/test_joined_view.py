"""`tokens`, piece by piece, is what polars gives for the join by keys; pieces that cannot matter are not planned."""

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.support.tiny_store import EXAMPLES
from tests.support.tiny_tables import LENGTH, losses_and_uncertainty
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables import joined_view
from tokenuq_ml.tables.estimate_schemas import BALD_COLUMNS
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.scanning import scan
from tokenuq_ml.tables.sql import connect, query_errors, select

pytestmark = pytest.mark.slow


@pytest.fixture
def many_pieces(monkeypatch):
    """Row groups that end within examples, three of them a piece."""
    monkeypatch.setattr("tokenuq_ml.tables.parquet.ROW_GROUP_ROWS", 40)
    monkeypatch.setattr(joined_view, "PIECE_GROUPS", 3)


def store(home, study, losses, uncertainty):
    for table, frame in (("token_losses", losses), ("token_uncertainty", uncertainty)):
        if frame is not None:
            write_table(frame, table, home / table / f"study={study}", spec_hash="s", code_version="c")


def asked(home, where="true"):
    with connect(home) as connection:
        sql = f"SELECT * FROM tokens WHERE {where} ORDER BY study, example_id, position"
        return pl.from_arrow(select(connection, sql).to_arrow_table())


def by_keys(home):
    joined = scan("tokens", home).sort("study", "example_id", "position").collect()
    return joined.with_columns(pl.col(pl.Categorical).cast(pl.String))


def pieces(home, where):
    with connect(home) as connection:
        return connection.execute(f"EXPLAIN SELECT * FROM tokens WHERE {where}").fetchone()[1].count("Positional Scan")


def test_a_join_in_pieces_equals_a_join_by_key(tmp_path, many_pieces):
    store(tmp_path, "a", *losses_and_uncertainty(EXAMPLES, 0))
    store(tmp_path, "b", *losses_and_uncertainty(EXAMPLES, 1))
    assert_frame_equal(asked(tmp_path), by_keys(tmp_path))
    assert len(asked(tmp_path)) == 2 * EXAMPLES * LENGTH
    assert pieces(tmp_path, "true") == 2 * -(-EXAMPLES * LENGTH // (3 * 40))


def test_a_query_for_one_example_reads_few_pieces(tmp_path, many_pieces):
    store(tmp_path, "a", *losses_and_uncertainty(EXAMPLES, 0))
    store(tmp_path, "b", *losses_and_uncertainty(EXAMPLES, 1))
    everything = by_keys(tmp_path)
    for number in range(0, EXAMPLES, 3):
        one = f"toy/{number:03d}"
        expected = everything.filter(pl.col("study") == "b", pl.col("example_id") == one)
        assert_frame_equal(asked(tmp_path, f"study = 'b' AND example_id = '{one}'"), expected)
        # An example may end in the next piece.
        assert 1 <= pieces(tmp_path, f"study = 'b' AND example_id = '{one}'") <= 2
    assert pieces(tmp_path, "study = 'none'") == 0


def test_a_study_whose_files_do_not_match_is_joined_by_key(tmp_path, many_pieces):
    losses, uncertainty = losses_and_uncertainty(EXAMPLES, 0)
    store(tmp_path, "whole", losses, uncertainty)
    # As many rows, but other ones: a new dataset of which one table has been made.
    store(tmp_path, "shifted", losses.filter(pl.col("example_id") != "toy/000"), uncertainty.head(-LENGTH))
    store(tmp_path, "fewer", losses, uncertainty.filter(pl.col("position") % 2 == 0))
    store(tmp_path, "alone", losses, None)
    assert_frame_equal(asked(tmp_path), by_keys(tmp_path))
    counts = dict(asked(tmp_path).group_by("study").len().rows())
    assert counts == {
        "whole": EXAMPLES * LENGTH,
        "shifted": (EXAMPLES - 2) * LENGTH,
        "fewer": EXAMPLES * LENGTH // 2,
    }


def test_rows_of_different_keys_are_never_joined(tmp_path):
    losses, uncertainty = losses_and_uncertainty(EXAMPLES, 0)
    # The same first and last example and as many rows, so that nothing in the footers tells.
    inside = pl.when(pl.col("example_id") == "toy/004").then(pl.lit("toy/0041")).otherwise("example_id")
    store(tmp_path, "a", losses, uncertainty.with_columns(example_id=inside))
    assert_frame_equal(asked(tmp_path), by_keys(tmp_path))
    assert len(asked(tmp_path)) == (EXAMPLES - 1) * LENGTH


def test_a_query_fails_after_a_file_was_replaced(tmp_path, many_pieces):
    store(tmp_path, "a", *losses_and_uncertainty(EXAMPLES, 0))
    store(tmp_path, "b", *losses_and_uncertainty(EXAMPLES, 1))
    with connect(tmp_path) as connection:
        store(tmp_path, "b", *losses_and_uncertainty(EXAMPLES + 4, 2))
        for where in ("true", "study = 'b' AND example_id = 'toy/001'"):
            with (
                pytest.raises(InputError, match="study b: a token table was replaced .*; connect again"),
                query_errors(),
            ):
                select(connection, f"SELECT * FROM tokens WHERE {where}").fetchall()
        (count,) = select(connection, "SELECT count(*) FROM tokens WHERE study = 'a'").fetchall()[0]
        assert count == EXAMPLES * LENGTH
    assert_frame_equal(asked(tmp_path), by_keys(tmp_path))


def test_files_of_other_writers_are_joined_by_key(tmp_path):
    store(tmp_path, "a", *losses_and_uncertainty(EXAMPLES, 0))
    for file in tmp_path.rglob("*.parquet"):
        pl.read_parquet(file.read_bytes()).write_parquet(file)
    assert_frame_equal(asked(tmp_path), by_keys(tmp_path))
    assert pieces(tmp_path, "true") == 0


def test_names_of_studies_are_quoted(tmp_path, many_pieces):
    rename = pl.concat_str(pl.lit("o'clock/"), "example_id").alias("example_id")
    store(tmp_path / "it's", "a", *(frame.with_columns(rename) for frame in losses_and_uncertainty(EXAMPLES, 0)))
    assert_frame_equal(asked(tmp_path / "it's"), by_keys(tmp_path / "it's"))


def test_a_table_without_rows_joins_to_no_rows(tmp_path):
    store(tmp_path, "a", *(frame.clear() for frame in losses_and_uncertainty(EXAMPLES, 0)))
    assert asked(tmp_path).is_empty() and asked(tmp_path).columns == by_keys(tmp_path).columns


def test_the_truth_of_a_language_is_joined_and_null_elsewhere(tmp_path, many_pieces):
    losses, uncertainty = losses_and_uncertainty(EXAMPLES, 0)
    store(tmp_path, "plain", losses, uncertainty)
    store(tmp_path, "language", losses, uncertainty)
    known = losses.select("example_id", "position").filter(pl.col("position") % 2 == 0)
    truth = known.with_columns(
        slot=pl.lit("fact"),
        true_entropy=pl.int_range(pl.len()) / 7,
        true_loss=pl.int_range(pl.len()) / 9,
        support=pl.lit([3, 5], pl.List(pl.Int32)),
        probabilities=pl.lit([0.25, 0.75], pl.List(pl.Float64)),
        clean_probabilities=pl.lit([0.0, 1.0], pl.List(pl.Float64)),
    )
    folder = tmp_path / "token_truth" / "study=language"
    write_table(truth, "token_truth", folder, spec_hash="s", code_version="c")
    assert_frame_equal(asked(tmp_path), by_keys(tmp_path))
    read = asked(tmp_path, "study = 'language' AND slot = 'fact'").select(known.columns + ["true_entropy", "true_loss"])
    assert_frame_equal(read, truth.select(read.columns).cast({"position": pl.Int32}))
    assert asked(tmp_path, "study = 'plain' AND slot IS NULL AND true_loss IS NULL").height == EXAMPLES * LENGTH


def test_estimates_are_joined_and_null_elsewhere(tmp_path, many_pieces):
    losses, uncertainty = losses_and_uncertainty(EXAMPLES, 0)
    store(tmp_path, "plain", losses, uncertainty)
    store(tmp_path, "estimated", losses, uncertainty)
    nulls = (pl.lit(None, pl.Float32).alias(name) for name in BALD_COLUMNS)
    estimates = losses.select("example_id", "position").with_columns(nulls)
    estimates = estimates.with_columns(bald_laplace=(pl.int_range(pl.len()) / 7).cast(pl.Float32))
    folder = tmp_path / "uncertainty_estimates" / "study=estimated"
    write_table(estimates, "uncertainty_estimates", folder, spec_hash="s", code_version="c")
    assert_frame_equal(asked(tmp_path), by_keys(tmp_path))
    read = asked(tmp_path, "study = 'estimated' AND bald_laplace IS NOT NULL AND bald_adapter_ensemble IS NULL")
    assert read["bald_laplace"].equals(estimates.sort("example_id", "position")["bald_laplace"])
    assert asked(tmp_path, "study = 'plain' AND bald_laplace IS NULL").height == EXAMPLES * LENGTH
