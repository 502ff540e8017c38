"""The notebooks in examples/notebooks/: they run from top to bottom, and are stored without results."""

import re

import nbformat
import pytest

from tests.support.paths import ROOT

FOLDER = ROOT / "examples/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_results(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(cell.attachments for cell in notebook.cells if "attachments" in cell)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_explain_themselves_and_are_listed(path):
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "tests" not in text
    assert f"[{path.name}](notebooks/{path.name})" in (ROOT / "examples/README.md").read_text()
    assert f"examples/notebooks/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (FOLDER / link).is_file(), link


def executed(name: str, folder, monkeypatch):
    """Run a notebook in an empty folder, offline; return its cells with their results."""
    from nbclient import NotebookClient

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute().cells


def results(cells, kind: str) -> list[str]:
    """What the cells show as `kind`, such as text/plain."""
    return [
        output["data"][kind] for cell in cells for output in cell.get("outputs", []) if kind in output.get("data", {})
    ]


@pytest.mark.heavy
def test_token_tables_are_explored(tmp_path, monkeypatch):
    cells = executed("explore_token_tables", tmp_path, monkeypatch)
    printed = "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    found, listed, wrong = map(int, re.search(r"(\d+) of the first (\d+) are among the (\d+) texts", printed).groups())
    # By chance, a tenth of the texts would be wrong.
    assert (listed, wrong) == (30, 30) and found >= 12
    assert len(results(cells, "image/png")) == 1
    coloured = [html for html in results(cells, "text/html") if "rgba(220, 60, 50" in html]
    assert len(coloured) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.heavy
def test_an_own_objective_trains_and_is_compared(tmp_path, monkeypatch):
    cells = executed("own_objective", tmp_path, monkeypatch)
    (table,) = (text for text in results(cells, "text/plain") if "right results" in text)
    rows = re.findall(r"│ (mle|plausible|capped) +┆ ([\d.]+) +┆ ([\d.]+) +┆ ([\d.]+) +│", table)
    selected = {name: float(share) for name, share, _, _ in rows}
    right = {name: float(share) for name, _, _, share in rows}
    assert selected["mle"] == selected["capped"] == 1 and 0.8 < selected["plausible"] < 1
    # A random result is right in one of 19 cases.
    assert all(share > 0.2 for share in right.values()) and right["capped"] > right["mle"]
    assert len(results(cells, "image/png")) == 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".py"] == ["own_functions.py"]
