"""The Markdown pages of the project, split into parts."""

import re
from pathlib import Path

from tests.support.paths import ROOT

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "tokenuq_ml").rglob("README.md"),
        *(ROOT / "tokenuq_pipeline").rglob("README.md"),
        *(ROOT / "examples").rglob("README.md"),
        *(ROOT / "tests").rglob("README.md"),
    ]
)


def page_name(page: Path) -> str:
    """The page's path in the checkout, as a test id."""
    return page.relative_to(ROOT).as_posix()


def fenced_blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced code blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def without_fences(text: str) -> str:
    """The text without its fenced code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
