"""The report of forty families of ten seeds stays a page that a browser handles."""

import pytest

from tests.support import chromium, large_report
from tests.support.pictures import draw_each_layout_once
from tests.support.reporter import RecordingReporter
from tokenuq_ml.stages import report

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(chromium.program() is None, reason="no Chromium on PATH to open the report with"),
]
MEGABYTES, ELEMENTS, HEIGHT = 12, 60_000, 40_000
"""Half as much again as the page had when it opened within two seconds (benchmarks/report_page.py)."""


def test_the_page_is_small_and_shows_every_family(tmp_path, monkeypatch):
    draw_each_layout_once(monkeypatch)
    request = large_report.write_tables(tmp_path)
    report.run(request, RecordingReporter())
    file = tmp_path / "report" / report.PAGE
    assert file.stat().st_size < MEGABYTES * 1e6
    with chromium.Page(file, tmp_path / "profile", width=390) as page:
        assert page.evaluate("document.querySelectorAll('*').length") < ELEMENTS
        families = large_report.FAMILIES + 2
        assert page.evaluate("document.querySelectorAll('#p-left option').length") == families
        rows = "document.querySelectorAll('table.ablations')[{}].tBodies[0].rows.length"
        assert page.evaluate(rows.format(0)) == families
        assert page.evaluate(rows.format(1)) == large_report.FAMILIES * large_report.SEEDS + 2
        # What there is one of for each of 400 students is collapsed.
        assert page.evaluate("document.documentElement.scrollHeight") < HEIGHT
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.problems == []
