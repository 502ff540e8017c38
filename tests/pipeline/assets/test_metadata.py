"""Previews and plots as the UI shows them."""

import polars as pl

from tokenuq_pipeline.assets import metadata
from tokenuq_pipeline.assets.asset import table_of


def test_a_preview_has_one_markdown_row_per_table_row():
    frame = pl.DataFrame(
        {
            "text": ["a|b\nc", "x" * 200, None, "<end>", "`*`"] * 10,
            "ids": [list(range(99))] * 50,
            "loss": [1.23456789] * 50,
        }
    )
    lines = metadata.preview(frame).value.splitlines()
    assert lines[0] == "| text | ids | loss |" and lines[1].count("---") == 3
    assert lines[2] == "| a\\|b⏎c | [0, 1, 2, 3, 4, 5, … 99 in total] | 1.235 |"
    assert len(lines[3].split(" | ")[0]) <= 2 + metadata.CELL_CHARACTERS and "…" in lines[3]
    assert lines[4].startswith("|  | [") and lines[5].startswith("| &lt;end> |")
    assert len(lines) == 2 + metadata.PREVIEW_ROWS + 2 and lines[-1] == "50 rows in total"


def test_a_short_table_is_shown_completely():
    assert len(metadata.preview(pl.DataFrame({"n": range(20)})).value.splitlines()) == 22


def test_a_large_picture_is_named_and_not_embedded(tmp_path):
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    small.write_bytes(b"x")
    large.write_bytes(b"x" * (metadata.PLOT_BYTES + 1))
    assert metadata.plot(small).value == "![small](data:image/png;base64,eA==)"
    assert "too large" in metadata.plot(large).value and len(metadata.plot(large).value) < 500
    assert "was not drawn" in metadata.plot(tmp_path / "none.png").value


def test_a_page_is_a_file_url(tmp_path):
    value = metadata.page(tmp_path / "a report.html")
    assert value.path == f"{tmp_path.as_uri()}/a%20report.html"


def test_output_names_lead_to_their_tables():
    assert table_of("evaluations_teacher") == "evaluations"
    assert table_of("evaluation_examples_base") == "evaluation_examples"
    assert table_of("token_losses") == "token_losses"
    assert table_of("adapter") is None and table_of("plots") is None
