"""The documentation site: it builds without a warning, has every page, and fetches nothing."""

import os
import re
import subprocess
import sys

import pytest

from tests.support import chromium
from tests.support.markdown import PAGES
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
_FETCHED = re.compile(r"<(?:script|link|img|iframe)[^>]*\s(?:src|href)=\"?(https?://[^\"> ]*)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_of_the_documentation_is_in_the_site(site):
    pages = [page.relative_to(ROOT / "docs") for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert len(pages) > 20
    for page in pages:
        name = "index.html" if page.name == "README.md" else page.with_suffix(".html").name
        assert (site / page.parent / name).is_file(), page


def test_nothing_is_fetched(site):
    found = {(page.name, url) for page in site.rglob("*.html") for url in _FETCHED.findall(page.read_text())}
    assert found == set()


def test_formulas_are_shown_without_a_script(site):
    text = (site / "method.html").read_text()
    assert text.count("<math") > 10 and "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "<math" in (site / "costs.html").read_text()


def test_the_reference_has_the_names_and_the_keys(site):
    library, studies = ((site / "reference" / f"{name}.html").read_text() for name in ("library", "studies"))
    for name in ("TokenObjective", "score_tokens", "measure_bald"):
        assert f".{name}" in library
    for key in ("max_truncated_share", "gradient_checkpointing", "learning_rate", "quantile"):
        assert f"<td><code>{key}</code></td>" in studies
    assert 'href="#trainspec"' in studies and '<h3 id="trainspec">' in studies


def test_links_to_files_outside_lead_to_pages_or_are_text(site):
    overview = (site / "index.html").read_text()
    assert 'href="CONTRIBUTING.html"' in overview and "../CONTRIBUTING" not in overview
    assert 'href="../scoring.html"' in (site / "examples" / "index.html").read_text()


@pytest.mark.skipif(chromium.program() is None, reason="no Chromium on PATH to open the site with")
def test_pages_fit_a_phone_and_open_from_files(site, tmp_path):
    with chromium.Page(None, tmp_path, width=390) as page:
        for name in ("index", "tutorial", "method", "reference/studies", "examples/notebooks/own_objective"):
            page.open((site / f"{name}.html").as_uri())
            # Wide formulas, tables and listings scroll by themselves.
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            loaded = [one["url"] for one in page.call("Page.getResourceTree")["frameTree"]["resources"]]
            assert loaded and all(url.startswith(("file:", "data:")) for url in loaded), loaded
        assert page.problems == []
