"""The report in headless Chromium: it opens without errors and shows the numbers of the tables."""

import csv
import io
import re
from pathlib import Path

import polars as pl
import pytest

from tests.support import chromium, tiny_tables
from tests.support.tiny_report import ABLATIONS, LOSSES, build_report
from tokenuq_ml.stages.correlate import joined_tokens
from tokenuq_ml.tables.parquet import read_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.program() is None, reason="no Chromium on PATH to open the report with"),
]
ATTACK = "<script>window.attacked = true</script><img src=x onerror='window.attacked = true'>"
TEST, TRAIN = "toy/002", "toy/000"
STEPS = (1, 4)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of the report of a toy study, whose prompts and first tokens are HTML."""
    folder = tmp_path_factory.mktemp("report")
    losses, uncertainty = tiny_tables.losses_and_uncertainty()
    losses = losses.with_columns(token=pl.when(position=0).then(pl.lit(ATTACK)).otherwise("token"))
    tokens = joined_tokens(losses, uncertainty)
    questions = tiny_tables.examples_table().with_columns(
        messages=pl.lit([{"role": "user", "content": ATTACK}, {"role": "assistant", "content": "a"}])
    )
    train = tokens.filter(split="train")
    selections = {
        f"selections/{name}": pl.concat(
            train.select(
                "example_id",
                "position",
                step=pl.lit(step, pl.Int32),
                epoch=pl.lit(step / 4, pl.Float32),
                loss=pl.col("loss") * step * k,
                selected=(pl.col("position") + step + k) % 4 == 0,
                objective=pl.lit("mle"),
            )
            for step in STEPS
        )
        for k, name in enumerate(ABLATIONS, 1)
    }
    scored = {
        f"evaluation_tokens/{name}": tiny_tables.evaluation_tokens(tokens, LOSSES[name] - 2) for name in ABLATIONS
    }
    changed = {"token_losses": losses, "token_alternatives": tiny_tables.alternatives(tokens)}
    build_report(folder, **changed, **selections, **scored, **{"examples/toy": questions, "examples/far": questions})
    return folder


class Reader:
    """The open report, as a person uses it, and the tables that it was made from."""

    def __init__(self, page: chromium.Page, folder: Path):
        self.page, self.store = page, folder / "store"
        page.evaluate("document.getElementById('explorer').parentElement.scrollIntoView()")
        page.wait(lambda: page.evaluate("document.querySelectorAll('#x-tokens span').length"))

    def rows(self, table: str, example_id: str) -> pl.DataFrame:
        return read_table(self.store / table).filter(pl.col("example_id") == example_id)

    def choose(self, selector: str, text: str) -> None:
        """Picks the option that starts with `text`."""
        self.page.evaluate(
            f"""(() => {{ const list = document.querySelector('{selector}');
            list.value = [...list.options].find(o => o.text.startsWith('{text}')).value;
            list.dispatchEvent(new Event('change')) }})()"""
        )

    def colour_by(self, name: str) -> None:
        self.page.click(f'[data-by="{name}"]')
        assert self.page.evaluate(f"document.querySelector('[data-by=\"{name}\"]').ariaPressed") == "true"

    def shades(self) -> list[float]:
        """How strongly each token is coloured: 0 to 1."""
        colours = self.page.evaluate(
            "[...document.querySelectorAll('#x-tokens span')].map(s => s.style.backgroundColor)"
        )
        return [float(re.search(r"([\d.]+)\)$", colour)[1]) / 0.75 if colour else 0.0 for colour in colours]

    def hover(self, token: int) -> dict[str, str]:
        """What the tooltip says of a token: name -> text; `choices` is the list of alternatives."""
        self.page.hover("#x-tokens span", token)
        self.page.wait(lambda: self.page.evaluate("!document.getElementById('x-tip').hidden"))
        said = self.page.evaluate(
            """Object.fromEntries([...document.querySelectorAll('#x-tip dt')].map(
            dt => [dt.textContent, dt.nextSibling.textContent]))"""
        )
        said["title"] = self.page.evaluate("document.querySelector('#x-tip .title').textContent")
        said["choices"] = self.page.evaluate("[...document.querySelectorAll('.choices li')].map(l => l.textContent)")
        return said


def nats(text: str) -> float:
    assert text.endswith(" nats")
    return float(text.removesuffix(" nats").replace("−", "-"))


# What is shown has three digits.
close = lambda value: pytest.approx(value, rel=6e-3, abs=2e-7)  # noqa: E731


@pytest.fixture(scope="module")
def reader(report, tmp_path_factory):
    with chromium.Page(report / "report/report.html", tmp_path_factory.mktemp("profile")) as page:
        yield Reader(page, report)
        assert page.problems == []


def test_text_from_data_is_shown_as_text(reader):
    reader.choose("#x-example", TEST)
    assert reader.page.evaluate("document.getElementById('x-prompt').textContent") == ATTACK
    assert reader.page.evaluate("document.querySelector('#x-tokens span').textContent") == ATTACK
    assert ATTACK in reader.hover(0)["title"]
    assert reader.page.evaluate("window.attacked") is None
    assert reader.page.evaluate("document.querySelectorAll('#explorer script, #explorer img').length") == 0


def test_hovering_a_token_shows_the_numbers_of_the_table(reader):
    reader.choose("#x-example", TEST)
    losses, uncertainty = reader.rows("token_losses", TEST), reader.rows("token_uncertainty", TEST)
    for token in (1, 2, 27):
        said = reader.hover(token)
        for name, column in (("loss, teacher", "loss"), ("loss, base model", "base_loss"), ("entropy", "entropy")):
            assert nats(said[name]) == close(losses[column][token])
        assert nats(said["BALD"]) == close(uncertainty["bald"][token])
        assert f"{losses['category'][token]}, position {losses['position'][token]}" in said["title"]
        token_text = {" x": "␣x", "\n": "↵"}.get(losses["token"][token], losses["token"][token])
        assert said["choices"] == [f"{token_text}50.0%", "other25.0%"]


@pytest.mark.parametrize(
    "by, table", [("loss", "token_losses"), ("entropy", "token_losses"), ("bald", "token_uncertainty")]
)
def test_the_buttons_switch_the_colouring(reader, by, table):
    reader.choose("#x-example", TEST)
    reader.colour_by(by)
    everything = read_table(reader.store / table)[by]
    top = everything.quantile(0.95)
    expected = [min(value / top, 1) for value in reader.rows(table, TEST)[by]]
    assert reader.shades() == pytest.approx(expected, abs=0.01) and max(expected) > 0.5


def test_selected_tokens_of_a_step_are_coloured(reader):
    reader.choose("#x-example", TRAIN)
    reader.colour_by("selected")
    reader.choose("#x-ablation", "paper_top50")
    for step in STEPS:
        reader.choose("#x-step", f"step {step}")
        rows = reader.rows("selections/paper_top50", TRAIN).filter(step=step)
        assert [shade > 0 for shade in reader.shades()] == rows["selected"].to_list()
        said = reader.hover(5)
        assert said[f"at step {step}"] == ("selected" if rows["selected"][5] else "not selected")
        assert nats(said["loss at that step"]) == close(rows["loss"][5])
        assert said["choices"] == []
    reader.choose("#x-example", TEST)
    assert set(reader.shades()) == {0.0}
    assert "choose a train example" in reader.page.evaluate("document.getElementById('x-legend').textContent")


@pytest.mark.parametrize("example, table", [(TEST, "evaluation_tokens"), (TRAIN, "selections")])
def test_the_difference_between_two_ablations_is_coloured(reader, example, table):
    reader.choose("#x-example", example)
    reader.colour_by("difference")
    reader.choose("#x-left", "paper_top50")
    reader.choose("#x-right", "paper_top25")
    left, right = (reader.rows(f"{table}/{name}", example) for name in ("paper_top50", "paper_top25"))
    if table == "selections":
        left, right = (frame.filter(step=STEPS[-1]) for frame in (left, right))
    said = reader.hover(3)
    where = f" at step {STEPS[-1]}" if table == "selections" else ""
    assert nats(said[f"loss, paper_top50{where}"]) == close(left["loss"][3])
    assert nats(said[f"loss, paper_top25{where}"]) == close(right["loss"][3])
    assert nats(said["difference"]) == pytest.approx(left["loss"][3] - right["loss"][3], rel=0.02, abs=2e-3)
    assert all(shade > 0 for shade in reader.shades()[1:])


def test_arrow_keys_move_from_token_to_token(reader):
    reader.choose("#x-example", TEST)
    reader.page.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
    reader.page.evaluate("document.getElementById('x-tokens').focus()")
    for _ in range(3):
        reader.page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight")
    assert "position 2" in reader.page.evaluate("document.querySelector('#x-tip .title').textContent")
    reader.page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert reader.page.evaluate("document.getElementById('x-tip').hidden")


def test_the_picker_shows_the_difference_of_two_families(reader, report):
    table = pl.read_json(report / "report/family_table.json")
    row = table.filter(family="paper_top50", metric="loss").row(0, named=True)
    reader.choose("#p-left", "paper_top50")
    reader.choose("#p-right", row["against"])
    shown = reader.page.evaluate(
        """[...document.querySelectorAll('#p-table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"""
    )
    cells = next(one for one in shown if one[0].startswith(row["dataset"]) and one[1].startswith("loss"))
    number = lambda text: float(text.replace("−", "-"))  # noqa: E731
    assert [number(cells[3]), number(cells[5])] == pytest.approx([row["value"], row["difference"]], abs=6e-4)
    (text,) = saved(reader, "#pairs button.csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0])[3:5] == ["paper_top50", row["against"]]
    # The page has a typographic minus, which no program reads as a number.
    assert row["difference"] < 0
    saved_differences = [float(one["difference"]) for one in rows if one["dataset"].startswith(row["dataset"])]
    assert saved_differences[0] == pytest.approx(row["difference"], abs=6e-4)
    reader.choose("#p-left", row["against"])
    reader.choose("#p-right", "paper_top50")
    turned = reader.page.evaluate("document.querySelectorAll('#p-table tbody tr')[0].cells[5].textContent")
    assert number(turned) == pytest.approx(-number(shown[0][5]), abs=1e-9)


def saved(reader, buttons: str) -> list[str]:
    """Return the CSV files that the buttons of this selector save."""
    script = f"""(() => {{ const saved = []; const make = URL.createObjectURL;
    URL.createObjectURL = (blob) => {{ saved.push(blob); return make(blob) }};
    document.querySelectorAll('{buttons}').forEach(b => b.click()); URL.createObjectURL = make;
    return Promise.all(saved.map(b => b.text())) }})()"""
    return reader.page.evaluate(script)


def test_every_table_is_saved_as_csv(reader):
    texts = saved(reader, "button.csv")
    assert len(texts) == reader.page.evaluate("document.querySelectorAll('table').length")
    for text in texts:
        widths = {len(line) for line in csv.reader(io.StringIO(text))}
        assert len(widths) == 1 and widths != {1}
