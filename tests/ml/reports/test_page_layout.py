"""Pages in headless Chromium, light and dark, on a phone, a laptop and a wide screen: they fit and can be read."""

import json
from pathlib import Path

import polars as pl
import pytest

from tests.support import chromium, tiny_tables
from tests.support.pictures import ONE_PIXEL, leave_out_pictures
from tests.support.tiny_report import build_report
from tokenuq_ml.reports import given_texts, html
from tokenuq_ml.reports.comparisons.parts import Fold, Picture, Table, Text, as_html
from tokenuq_ml.scoring.given_texts import TextTables

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.program() is None, reason="no Chromium on PATH to open pages with"),
]
CHECKS = Path(chromium.__file__).with_name("page_checks.js").read_text(encoding="utf-8")
WIDTHS = (390, 1280, 1920)
LONG = "a_name_of_a_family_that_somebody_has_made_long_enough_to_break_a_phone_" * 2


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> the file of a page: a report, a comparison, the page of `tokenuq score`."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        _, report = build_report(folder / "report")
    files = {"report": report / "report.html", "comparison": folder / "c.html", "score": folder / "s.html"}
    (folder / "p.png").write_bytes(ONE_PIXEL)
    wide = Table([f"column {number}" for number in range(30)], [["0.123 [0.100, 0.200]"] * 30] * 3)
    parts = [Text("The answer.", "verdict"), Text(LONG), wide, Picture("p.png", LONG, "meaning"), Fold("more", [wide])]
    files["comparison"].write_text(html.page(LONG, LONG, [(LONG, as_html(parts, folder))]), encoding="utf-8")
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    tokens = losses.join(uncertainty, on=["example_id", "position"])
    tables = TextTables(tokens, tiny_tables.alternatives(losses))
    given_texts.write_page(files["score"], tables, {"toy/000": LONG}, {"model": LONG, "adapter": None})
    return files


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium.Page(None, tmp_path_factory.mktemp("profile")) as page:
        yield page


def show(tab, file: Path, scheme: str, width: int) -> None:
    """Open a page with all that it collapses, and wait for its explorer if it has one."""
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.open(file.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    if tab.evaluate("Boolean(document.getElementById('explorer'))"):
        tab.evaluate("document.getElementById('explorer').parentElement.scrollIntoView()")
        tab.wait(lambda: tab.evaluate("document.querySelectorAll('#x-tokens span').length"))


@pytest.mark.parametrize("name", ["report", "comparison", "score"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read(pages, tab, name, scheme):
    for width in WIDTHS:
        show(tab, pages[name], scheme, width)
        assert tab.evaluate(CHECKS) == [], f"at {width}"
    page_colour = {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == page_colour[scheme]
    assert tab.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_of_every_colour_can_be_read(pages, tab, scheme):
    show(tab, pages["report"], scheme, 1280)
    for variable in ("--heat", "--cold"):
        # The full colour, as explorer.js paints it.
        tab.evaluate(
            f"document.querySelectorAll('#x-tokens span').forEach(one => "
            f"{{ one.style.backgroundColor = 'rgba(var({variable}),0.75)' }})"
        )
        assert tab.evaluate(CHECKS) == []


def test_tables_can_be_read_on_a_phone(pages, tab):
    show(tab, pages["report"], "light", 390)
    # The name of the first dataset is on the screen, also above more columns than the screen holds.
    text = "const range = new Range(); range.selectNodeContents(document.querySelector('th.group'))"
    assert tab.evaluate(f"(() => {{ {text}; return range.getBoundingClientRect().left }})()") < 250
    heights = tab.evaluate("[...document.querySelectorAll('#p-table tr')].map(row => row.offsetHeight)")
    assert heights and max(heights) < 100
    # A name has more than a letter per line, and the first family's value is on the screen.
    boxes = tab.evaluate(
        "[...document.querySelector('#p-table tbody tr').cells].map(cell => cell.getBoundingClientRect())"
        ".map(box => [box.left, box.right])"
    )
    assert boxes[0][1] - boxes[0][0] > 80 and boxes[3][1] <= 390


def test_the_checks_find_what_they_look_for(tab, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><h1>Title</h1><h3>Skipped</h3><p style='color:#999'>pale</p><p>a</p><p>b</p>"
        "<p style='font-size:8px'>tiny</p><div style='width:3000px'>wide</div><button style='height:9px'>b</button>"
        "<button></button><img src='x.png'>",
        encoding="utf-8",
    )
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    tab.open(bad.as_uri())
    found = json.dumps(tab.evaluate(CHECKS))
    for fault in ("wide", "contrast 2.8", "8 pixels", "heading 3 after 1", "no name", "without a text"):
        assert fault in found
    tab.problems.clear()


def test_a_table_that_scrolls_has_the_focus_of_the_keyboard(pages, tab):
    show(tab, pages["comparison"], "light", 390)
    tab.wait(lambda: tab.evaluate("document.querySelector('.scroll').tabIndex === 0"))
    tab.evaluate("document.querySelector('button.csv').focus()")
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
    assert tab.evaluate("document.activeElement.className") == "scroll"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_paper_is_white_and_shows_whole_tables(pages, tab):
    show(tab, pages["comparison"], "dark", 1280)
    tab.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
    assert tab.evaluate("getComputedStyle(document.querySelector('figure img')).filter") == "none"
    tab.call("Emulation.setEmulatedMedia", media="")


def test_a_collapsed_table_is_saved_as_it_is_shown(pages, tab):
    """A value and its interval are on two lines of a cell, and two words of the file."""
    tab.open(pages["report"].as_uri())
    script = """(() => { let saved; const make = URL.createObjectURL;
    URL.createObjectURL = (blob) => { saved = blob; return make(blob) };
    const table = [...document.querySelectorAll('details table')].find(one => one.classList.contains('ablations'));
    table.closest('.table').querySelector('button.csv').click(); URL.createObjectURL = make; return saved.text() })()"""
    rows = [line.split(",", 1) for line in tab.evaluate(script).splitlines()]
    mle = next(cells for name, cells in rows if name == "mle")
    losses = pl.read_json(pages["report"].with_name("ablation_table.json")).filter(model="mle", metric="loss")
    row = losses.row(0, named=True)
    assert f'"{row["value"]:.3f} [{row["ci_low"]:.3f}, {row["ci_high"]:.3f}]"' in mle
