"""Tables: schemas, atomic writing, content hashes, reading as a hive-partitioned dataset."""

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenuq_ml.content_hash import content_hash
from tokenuq_ml.errors import NonFiniteError
from tokenuq_ml.tables import parquet
from tokenuq_ml.tables.parquet import TableWriter, content_of, read_table, stream_table, write_table
from tokenuq_ml.tables.scanning import scan
from tokenuq_ml.tables.schemas import TABLES, table_dir

LOG = {
    "step": [2, 1],
    "epoch": [1.0, 0.5],
    "category": ["word", "number"],
    "n_tokens": [1, 2],
    "n_selected": [0, 1],
    "mean_loss": [1.0, 2.0],
}
STAMP = {"spec_hash": "s", "code_version": "c"}


def test_rows_are_sorted_typed_and_described(tmp_path):
    folder = table_dir(tmp_path, "curriculum", study="a", ablation="b")
    assert folder == tmp_path / "curriculum/study=a/ablation=b"
    write_table(pl.DataFrame(LOG), "curriculum", folder, **STAMP)
    stored = pq.read_table(folder / "part-0.parquet", partitioning=None)
    assert stored.column("step").to_pylist() == [1, 2]
    assert stored.schema.types == TABLES["curriculum"].schema.types
    assert pq.read_metadata(folder / "part-0.parquet").metadata[b"tokenuq.spec_hash"] == b"s"
    assert pq.read_metadata(folder / "part-0.parquet").row_group(0).column(0).compression == "ZSTD"
    everything = scan("curriculum", tmp_path).collect()
    assert everything["study"].to_list() == ["a", "a"] and everything["ablation"].to_list() == ["b", "b"]
    assert set(read_table(folder).columns) == set(LOG)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300])
def test_a_number_that_is_not_finite_is_refused_by_row_and_nothing_is_written(tmp_path, value):
    """1e300 has no float32, the column's type; null is no number and stays."""
    frame = pl.DataFrame(LOG | {"mean_loss": [None, value]})
    with pytest.raises(NonFiniteError, match=r"table curriculum: mean_loss is .* at step 1, category number"):
        write_table(frame, "curriculum", tmp_path, **STAMP)
    assert not list(tmp_path.iterdir())
    write_table(frame[:1], "curriculum", tmp_path, **STAMP)


def test_scan_takes_partitions_and_names_missing_ones(tmp_path):
    for study in ("a", "b"):
        write_table(
            pl.DataFrame(LOG), "curriculum", table_dir(tmp_path, "curriculum", study=study, ablation="m"), **STAMP
        )
    assert scan("curriculum", tmp_path, study="b").collect()["study"].unique().to_list() == ["b"]
    assert scan("curriculum", tmp_path, study=["a", "b"]).collect()["study"].to_list() == ["a", "a", "b", "b"]
    assert scan("curriculum", tmp_path).collect_schema().names()[:3] == ["study", "ablation", "step"]
    with pytest.raises(FileNotFoundError, match="materialise the asset"):
        scan("token_losses", tmp_path)
    with pytest.raises(FileNotFoundError, match="no study c; the store has a, b"):
        scan("curriculum", tmp_path, study="c")
    with pytest.raises(TypeError, match="token_losses is partitioned by study, not by ablation"):
        scan("token_losses", tmp_path, ablation="m")
    with pytest.raises(KeyError):
        scan("no_such_table", tmp_path)


def tokens(first, count):
    """Rows of `token_uncertainty`, three an example."""
    ids = [f"toy/{number // 3:05d}" for number in range(first, first + count)]
    values = {name: [number / 7 for number in range(first, first + count)] for name in UNCERTAINTY}
    position = [number % 3 for number in range(first, first + count)]
    return pl.DataFrame({"example_id": ids, "position": position, "n_samples": 2, **values})


UNCERTAINTY = ("predictive_entropy", "expected_entropy", "bald", "bald_std_error", "mc_loss")


def test_a_table_written_in_pieces_equals_one_written_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 40)
    whole = write_table(tokens(0, 300), "token_uncertainty", tmp_path / "whole", **STAMP)
    with TableWriter("token_uncertainty", tmp_path / "pieces", **STAMP) as writer:
        for first in range(0, 300, 25):
            writer.append(tokens(first, 25).sample(fraction=1, shuffle=True, seed=1))
    assert writer.digest == whole == content_of(tmp_path / "pieces")
    assert read_table(tmp_path / "pieces").equals(read_table(tmp_path / "whole"))
    assert pq.read_metadata(tmp_path / "pieces" / "part-0.parquet").num_row_groups > 5


def test_long_lists_are_written_before_they_fill_the_memory(tmp_path, monkeypatch):
    rows = pl.DataFrame(
        [
            {
                "example_id": f"d/{n:03d}",
                "dataset": "d",
                "split": "train",
                "input_ids": [n] * 9,
                "response_mask": [True] * 9,
            }
            for n in range(60)
        ]
    )
    whole = write_table(rows, "tokenized_dataset", tmp_path / "whole", **STAMP)
    monkeypatch.setattr(parquet, "ROW_GROUP_LIST_BYTES", 900)
    with TableWriter("tokenized_dataset", tmp_path / "pieces", **STAMP) as writer:
        for first in range(0, 60, 10):
            writer.append(rows.slice(first, 10))
    assert writer.digest == whole and read_table(tmp_path / "pieces").equals(read_table(tmp_path / "whole"))
    groups = [pq.read_metadata(tmp_path / name / "part-0.parquet").num_row_groups for name in ("whole", "pieces")]
    assert groups == [1, 3]


def losses(first, count):
    """Rows of `token_losses`, whose dictionaries differ from piece to piece."""
    frame = tokens(first, count).select("example_id", "position", loss="bald", entropy="mc_loss")
    words = [f"w{number % 11}" for number in range(first, first + count)]
    split = ["train" if number < 150 else "test" for number in range(first, first + count)]
    return frame.with_columns(
        pl.Series("token", words),
        pl.Series("split", split),
        base_loss="loss",
        base_entropy="entropy",
        dataset=pl.lit("toy"),
        category=pl.lit("word"),
        token_id=pl.lit(7),
        rank=pl.lit(0),
    )


@pytest.mark.parametrize("piece", [3, 30, 150])
def test_the_hash_does_not_depend_on_how_a_table_was_sharded(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 64)
    whole = write_table(losses(0, 300), "token_losses", tmp_path / "whole", **STAMP)
    with TableWriter("token_losses", tmp_path / "pieces", **STAMP) as writer:
        for first in range(0, 300, piece):
            writer.append(losses(first, piece))
    assert writer.digest == whole == content_hash(pq.read_table(tmp_path / "pieces/part-0.parquet", partitioning=None))
    stored = read_table(tmp_path / "pieces")
    assert stored["token"].cast(pl.String).to_list() == losses(0, 300)["token"].to_list()
    groups = pq.read_metadata(tmp_path / "pieces/part-0.parquet")
    sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
    assert sizes == [64, 64, 64, 64, 44]


def test_a_table_of_full_row_groups_has_no_empty_one(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 60)
    write_table(losses(0, 120), "token_losses", tmp_path, **STAMP)
    groups = pq.read_metadata(tmp_path / "part-0.parquet")
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [60, 60]
    write_table(losses(0, 120).clear(), "token_losses", tmp_path / "none", **STAMP)
    assert read_table(tmp_path / "none").is_empty()


def test_row_groups_and_dictionaries_suit_queries(tmp_path):
    write_table(losses(0, 300), "token_losses", tmp_path, **STAMP)
    group = pq.read_metadata(tmp_path / "part-0.parquet").row_group(0)
    columns = {group.column(number).path_in_schema: group.column(number) for number in range(group.num_columns)}
    assert {name for name, column in columns.items() if column.has_dictionary_page} == {
        "example_id", "dataset", "split", "token_id", "token", "category", "rank"
    }  # fmt: skip
    assert columns["example_id"].statistics.min == "toy/00000" and columns["example_id"].statistics.max == "toy/00099"


def test_a_table_is_streamed_a_few_rows_at_a_time(tmp_path):
    write_table(tokens(0, 300), "token_uncertainty", tmp_path, **STAMP)
    parts = list(stream_table(tmp_path, ["example_id", "bald"], rows=100))
    assert [part.num_rows for part in parts] == [100, 100, 100]
    assert pl.concat([pl.from_arrow(part) for part in parts]).equals(read_table(tmp_path).select("example_id", "bald"))


def test_pieces_out_of_order_are_rejected_and_leave_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match="token_uncertainty: row .*toy/00000.* out of order"),
        TableWriter("token_uncertainty", tmp_path, **STAMP) as writer,
    ):
        writer.append(tokens(30, 30))
        writer.append(tokens(0, 30))
    assert not any(tmp_path.iterdir())


def test_wrong_columns_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="curriculum: missing or unknown columns: mean_loss"):
        write_table(pl.DataFrame(LOG).drop("mean_loss"), "curriculum", tmp_path / "x", **STAMP)
    assert not any((tmp_path / "x").iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_table(pl.DataFrame(LOG), "curriculum", tmp_path, **STAMP)
    before = (tmp_path / "part-0.parquet").read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", broken)
    with pytest.raises(OSError, match="disk full"):
        write_table(pl.DataFrame(LOG), "curriculum", tmp_path, **STAMP)
    assert (tmp_path / "part-0.parquet").read_bytes() == before
    assert len(list(tmp_path.glob("part-*"))) == 1


class TestContentHash:
    def test_the_hash_depends_on_values_names_types_and_order(self):
        base = pa.table({"a": [1, 2], "b": ["x", None]})
        others = [
            pa.table({"a": [2, 1], "b": ["x", None]}),
            pa.table({"a": [1, 2], "b": ["x", ""]}),
            pa.table({"a": [1, 2], "c": ["x", None]}),
            pa.table({"a": pa.array([1, 2], pa.int32()), "b": ["x", None]}),
            pa.table({"a": [1, 3], "b": ["x", None]}),
        ]
        hashes = {content_hash(table) for table in [base, *others]}
        assert len(hashes) == 6

    def test_the_hash_does_not_depend_on_chunks_dictionaries_or_files(self, tmp_path):
        plain = pa.table({"a": ["x", "y", "x"], "l": [[1, 2], [], [3]]})
        chunked = pa.concat_tables([plain.slice(0, 1), plain.slice(1)])
        encoded = pa.table({"a": plain["a"].dictionary_encode(), "l": plain["l"]})
        assert content_hash(plain) == content_hash(chunked) == content_hash(encoded)
        pq.write_table(plain, tmp_path / "t.parquet", compression="snappy")
        assert content_hash(pq.read_table(tmp_path / "t.parquet")) == content_hash(plain)

    def test_the_hash_depends_on_the_borders_of_lists(self):
        assert content_hash(pa.table({"l": [[1], [2, 3]]})) != content_hash(pa.table({"l": [[1, 2], [3]]}))
        assert content_hash(pa.table({"s": ["ab", "c"]})) != content_hash(pa.table({"s": ["a", "bc"]}))

    def test_an_optional_column_counts_only_if_it_holds_a_value(self, tmp_path):
        turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        examples = {
            "example_id": ["d/000000", "d/000001"],
            "split": ["train", "test"],
            "messages": [turns, turns],
            "source": ["{}", '{"row": 2}'],
        }
        tokens = {"example_id": ["d/000000"], "dataset": ["d"], "split": ["train"]}
        tokens |= {"input_ids": [[1, 2, 3]], "response_mask": [[False, True, True]]}

        def digest(rows, table):
            return write_table(pl.DataFrame(rows), table, tmp_path / table, **STAMP)

        # The hashes of version 0.1.0, which had no optional columns.
        assert digest(examples, "examples") == "2bdc7ceba5e1b2bd"
        assert digest(tokens, "tokenized_dataset") == "3541271e0fda8751"
        assert read_table(tmp_path / "examples")["turn_weights"].to_list() == [None, None]
        assert digest({**examples, "turn_weights": [None, None], "template": [None, None]}, "examples") == (
            "2bdc7ceba5e1b2bd"
        )
        weighted = digest({**examples, "turn_weights": [None, [0.0, 0.5]]}, "examples")
        assert weighted not in (
            "2bdc7ceba5e1b2bd",
            digest({**examples, "turn_weights": [[0.0, 0.5], None]}, "examples"),
        )
        assert digest({**tokens, "token_weight": [[0.0, 1.0, 0.5]]}, "tokenized_dataset") != "3541271e0fda8751"

    def test_the_writer_returns_the_hash(self, tmp_path):
        first = write_table(pl.DataFrame(LOG), "curriculum", tmp_path / "a", **STAMP)
        shuffled = write_table(pl.DataFrame(LOG)[::-1], "curriculum", tmp_path / "b", spec_hash="t", code_version="d")
        assert first == shuffled
