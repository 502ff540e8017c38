"""Every module, file, link and heading that the pages name exists."""

import importlib
import importlib.util
import re

import pytest

from tests.support.markdown import PAGES, page_name, without_fences
from tests.support.paths import ROOT

FOLDERS = "tokenuq_ml|tokenuq_pipeline|tests|docs|config|benchmarks|examples"
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w\.(?:py|md|yaml|jinja|png|css|js|toml)\b")
FOLDER = re.compile(rf"`((?:{FOLDERS})/(?:[\w.-]+/)*)`")
DOTTED = re.compile(r"\btokenuq_(?:ml|pipeline)(?:\.[A-Za-z_]\w*)+")
LINK = re.compile(r"\]\(([^)\s]+)\)")
WALK = re.compile(r"^\|[^|]*\| `(\w+)` \| `([\w/.]+\.py)` \|$", re.MULTILINE)
MODULE = re.compile(r"`([\w/]+\.py)`")


def text_of(page):
    """The page; of the changelog, only what does not quote names of earlier versions."""
    text = page.read_text()
    return re.sub(r"^ *\|[^|]*\|", "|", text, flags=re.MULTILINE) if page.name == "CHANGELOG.md" else text


def exists(dotted: str) -> bool:
    """Whether a module, or an attribute of one, has this name."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.util.find_spec(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        if found is None:
            continue
        value = importlib.import_module(".".join(parts[:count]))
        for name in parts[count:]:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
        return True
    return False


def headings(page) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", without_fences(page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_paths_exist(page):
    missing = sorted(
        {path for path in [*PATH.findall(text_of(page)), *FOLDER.findall(text_of(page))] if not (ROOT / path).exists()}
    )
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_dotted_names_exist(page):
    missing = sorted({name for name in DOTTED.findall(text_of(page)) if not exists(name)})
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_to_pages_and_headings(page):
    broken = []
    for link in LINK.findall(page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", [page for page in PAGES if "tokenuq_" in page_name(page)], ids=page_name)
def test_a_package_readme_names_files_that_exist(page):
    named = MODULE.findall(page.read_text())
    missing = sorted({name for name in named if not any((folder / name).exists() for folder in page.parents)})
    assert not missing


def test_the_walks_of_the_architecture_page_name_functions_of_their_files():
    steps = WALK.findall((ROOT / "docs/architecture.md").read_text())
    assert len(steps) > 30
    wrong = [
        f"{path}: {name}"
        for name, path in steps
        if not re.search(rf"^\s*(?:def|class) {name}\b", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert not wrong


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert not [page for page in pages if page != "README.md" and f"({page})" not in index]
