"""SQL over the store: the views, what they read, and the sandbox around them."""

import shutil
import threading

import polars as pl
import pytest

from tests.support.tiny_store import ABLATIONS, EXAMPLES, STUDIES, make_store, publish
from tests.support.tiny_tables import LENGTH, losses_and_uncertainty
from tokenuq_ml.errors import InputError
from tokenuq_ml.tables.parquet import write_table
from tokenuq_ml.tables.scanning import scan
from tokenuq_ml.tables.schemas import TABLES
from tokenuq_ml.tables.sql import columns, connect, descriptions, query_errors, select

TOKENS = EXAMPLES * LENGTH


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("a 'store' [1]")).home


@pytest.fixture(scope="module")
def connection(home):
    with connect(home) as connection:
        yield connection


def plan(connection, sql):
    return connection.execute(f"EXPLAIN ANALYZE {sql}").fetchone()[1]


class TestViews:
    def test_every_table_and_the_join_are_views_with_their_columns(self, connection):
        described = columns(connection).to_pylist()
        for table, definition in TABLES.items():
            names = [row["column"] for row in described if row["table"] == table]
            assert names == [*definition.partitions, *definition.columns]
        assert set(descriptions(connection)) == {*TABLES, "tokens"}
        assert all(row["meaning"] for row in described)
        rows = {row["table"]: row["rows"] for row in described}
        assert rows["tokens"] == rows["token_losses"] == len(STUDIES) * TOKENS
        assert rows["curriculum"] == 0 and rows["evaluations"] == len(STUDIES) * (len(ABLATIONS) + 2) * 2

    def test_an_empty_view_has_the_types_of_a_full_one(self, home, connection, tmp_path):
        with connect(tmp_path) as empty:
            types = [columns(store).select(["table", "column", "type"]) for store in (empty, connection)]
        assert types[0].equals(types[1])

    def test_values_are_those_of_the_files(self, home, connection):
        read = pl.from_arrow(select(connection, "SELECT * FROM token_losses ORDER BY ALL").to_arrow_table())
        assert len(read) == len(STUDIES) * TOKENS
        one = pl.read_parquet((home / "token_losses/study=other/part-0.parquet").read_bytes())
        rest = read.filter(pl.col("study") == "other").drop("study")
        assert rest.equals(one.with_columns(pl.col(pl.Categorical).cast(pl.String)).sort("example_id", "position"))

    def test_tokens_joins_one_to_one(self, home, connection):
        joined = select(connection, "SELECT count(*), count(DISTINCT (study, example_id, position)) FROM tokens")
        assert joined.fetchall() == [(len(STUDIES) * TOKENS,) * 2]
        (loss, bald) = select(
            connection,
            "SELECT loss, bald FROM tokens WHERE study = 'other' AND example_id = 'toy/003' AND position = 5",
        ).fetchall()[0]
        at = (pl.col("example_id") == "toy/003") & (pl.col("position") == 5)
        for table, column, value in (("token_losses", "loss", loss), ("token_uncertainty", "bald", bald)):
            assert scan(table, home, study="other").filter(at).select(column).collect().item() == value

    def test_names_that_look_like_numbers_stay_text(self, tmp_path):
        frame = pl.read_parquet((make_store(tmp_path).home / "token_losses/study=other/part-0.parquet").read_bytes())
        write_table(frame, "token_losses", tmp_path / "lib/token_losses/study=007", spec_hash="s", code_version="c")
        with connect(tmp_path / "lib") as connection:
            assert select(connection, "SELECT DISTINCT study FROM token_losses").fetchall() == [("007",)]
        assert scan("token_losses", tmp_path / "lib").select("study").unique().collect().item() == "007"

    def test_columns_that_an_older_file_lacks_are_null(self, tmp_path):
        for study, columns_less in (("new", []), ("old", ["rank"])):
            folder = tmp_path / f"token_losses/study={study}"
            whole = pl.from_arrow(TABLES["token_losses"].schema.empty_table()).clear(2).drop(columns_less)
            folder.mkdir(parents=True)
            whole.write_parquet(folder / "part-0.parquet")
        with connect(tmp_path) as connection:
            assert select(connection, "SELECT study, rank FROM token_losses ORDER BY 1").fetchall() == [
                ("new", None), ("new", None), ("old", None), ("old", None)
            ]  # fmt: skip
        assert scan("token_losses", tmp_path).select("rank").collect()["rank"].null_count() == 4

    def test_later_publications_need_a_new_connection(self, tmp_path):
        store = make_store(tmp_path)
        store.forget("other/token_losses")
        count = "SELECT count(*), count(DISTINCT study) FROM token_losses"
        with connect(tmp_path) as connection:
            assert select(connection, count).fetchall() == [(TOKENS, 1)]
            publish(store, "other/token_losses", {"token_losses": losses_and_uncertainty(4)[0]}, study="other")
            assert select(connection, count).fetchall() == [(TOKENS, 1)]
            # What is made again in its place is read as it is now, whatever was known of the file before.
            publish(
                store, "quickstart/token_losses", {"token_losses": losses_and_uncertainty(8)[0]}, study="quickstart"
            )
            assert select(connection, count).fetchall() == [(8 * LENGTH, 1)]
        with connect(tmp_path) as connection:
            assert select(connection, count).fetchall() == [(12 * LENGTH, 2)]

    def test_a_broken_file_is_named(self, tmp_path):
        path = tmp_path / "token_losses/study=a/part-0.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no parquet at all")
        with connect(tmp_path) as connection:
            for sql in ("SELECT loss FROM token_losses WHERE rank = 3", "SELECT count(*) FROM tokens"):
                with pytest.raises(InputError, match="token_losses: .*study=a/part-0.parquet"), query_errors():
                    select(connection, sql).fetchall()
            assert select(connection, "SELECT count(*) FROM token_uncertainty").fetchall() == [(0,)]


class TestPruning:
    def test_partitions_are_skipped(self, connection):
        read = plan(connection, "SELECT avg(loss) FROM selections WHERE study = 'other' AND ablation = 'mle'")
        assert "Scanning Files: 1/6" in read and "Total Files Read: 1" in read

    def test_both_sides_of_tokens_skip_partitions(self, connection):
        every, one = (
            plan(connection, f"SELECT avg(bald * loss) FROM tokens {where}").count("READ_PARQUET")
            for where in ("", "WHERE study = 'other'")
        )
        assert (every, one) == (2 * len(STUDIES), 2)

    def test_unneeded_files_are_not_read(self, tmp_path):
        store = make_store(tmp_path)
        path = tmp_path / "token_losses/study=quickstart/part-0.parquet"
        good = path.read_bytes()
        # The footer stands; whoever reads a row stumbles.
        path.write_bytes(b"\xff" * (len(good) // 2) + good[len(good) // 2 :])
        assert store.is_complete("quickstart/token_losses")
        with connect(tmp_path) as connection:
            for sql in ("SELECT count(loss) FROM token_losses WHERE study = 'other'", "SELECT count(*) FROM tokens"):
                with pytest.raises(InputError, match="token_losses is damaged: .*study=quickstart/part-0.parquet"):
                    select(connection, sql)
                # Without the check of the names, the file system finds it.
                with pytest.raises(InputError, match="token_losses is damaged: "), query_errors():
                    connection.execute(sql).fetchall()
            assert select(connection, "SELECT count(*) FROM token_uncertainty").fetchall() == [(2 * TOKENS,)]
        shutil.rmtree(tmp_path / ".manifests")
        shutil.rmtree(tmp_path / ".staging", ignore_errors=True)
        with connect(tmp_path) as connection:
            asked = select(connection, "SELECT count(loss) FROM token_losses WHERE study = 'other'")
            assert asked.fetchall() == [(TOKENS,)]
            with pytest.raises(Exception):  # noqa: B017 - DuckDB's kind of error depends on the bytes
                connection.execute("SELECT sum(loss), count(example_id) FROM token_losses").fetchall()
        for frame in (
            scan("token_losses", tmp_path, study="other"),
            scan("token_losses", tmp_path).filter(pl.col("study") == "other"),
        ):
            assert frame.select("loss").collect().height == TOKENS
        with pytest.raises(pl.exceptions.ComputeError):
            scan("token_losses", tmp_path).collect()

    def test_row_groups_of_other_examples_are_skipped(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tokenuq_ml.tables.parquet.ROW_GROUP_ROWS", LENGTH)
        make_store(tmp_path)
        sql = "SELECT * FROM token_losses WHERE study = 'other' AND example_id = 'toy/005'"
        with connect(tmp_path) as connection:
            assert f"Row Groups Scanned: 1 / {EXAMPLES}" in plan(connection, sql)


class TestSelect:
    def test_a_wrong_name_suggests_the_nearest(self, connection):
        with pytest.raises(InputError, match=r'(?s)column "los" not found.*"loss"'):
            select(connection, "SELECT los FROM token_losses")
        with pytest.raises(InputError, match="token_loses does not exist.*mean token_losses"):
            select(connection, "SELECT * FROM token_loses")

    def test_an_interrupted_query_raises_keyboard_interrupt(self, connection):
        forever = (
            "SELECT sum(a.range * b.range) FROM range(10000000) a, range(1000000) b WHERE (a.range + b.range) % 7 = 3"
        )
        stop = threading.Timer(0.3, connection.interrupt)
        stop.start()
        with pytest.raises(KeyboardInterrupt), query_errors():
            select(connection, forever).fetchall()
        stop.join()

    def test_a_registered_frame_can_be_queried(self, home):
        with connect(home) as connection:
            connection.register("mine", pl.DataFrame({"example_id": ["toy/003"]}).to_arrow())
            joined = select(connection, "SELECT count(*) FROM token_losses JOIN mine USING (example_id)")
            assert joined.fetchall() == [(len(STUDIES) * LENGTH,)]


def test_scan_refuses_a_damaged_partition_and_reads_others(tmp_path):
    store = make_store(tmp_path)
    path = tmp_path / "selections/study=other/ablation=mle/part-0.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(content)
    for partitions in ({}, {"study": "other"}, {"study": "other", "ablation": ["paper_top25", "mle"]}):
        with pytest.raises(InputError, match=r"selections is damaged: .*ablation=mle/part-0.parquet.*verify --forget"):
            scan("selections", tmp_path, **partitions)
    for partitions in (
        {"study": "quickstart"},
        {"ablation": ["paper_top25"]},
        {"study": "other", "ablation": "paper_top25"},
    ):
        assert scan("selections", tmp_path, **partitions).collect().height > 0
    assert scan("tokens", tmp_path, study="other").collect().height == TOKENS
    assert store.is_complete("other/mle/student")


def test_an_asset_of_another_size_is_not_left_out_in_silence(tmp_path):
    make_store(tmp_path)
    path = tmp_path / "evaluations/study=other/ablation=mle/part-0.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    with connect(tmp_path) as connection:
        with pytest.raises(InputError, match="evaluations is damaged: .*study=other/ablation=mle"):
            select(connection, "SELECT count(*) FROM evaluations")
        assert select(connection, "SELECT count(*) FROM tokens").fetchall() == [(len(STUDIES) * TOKENS,)]
