"""Hooks of the documentation site (mkdocs.yml): pages that lie outside of docs/, and formulas that need no script.

Notebooks become pages too: their text and their code, without results.

Pages are written for readers of the repository. Their links to files outside of docs/ lead to the pages that are made
of these files here, or are shown as text if the site has no such page. Formulas become MathML, which browsers show by
themselves: scripts that typeset TeX are fetched from a network.
"""

import json
import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "deploy/README.md")
"""Files of the repository that are pages too."""
NOTEBOOKS = "examples/notebooks"
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
_FETCHED = re.compile(r'<script src="https?://[^"]*"></script>')
_FORMULA = re.compile(r"\$([^$\n]+(?:\n[^$\n]+)?)\$")


def on_files(files: Files, config) -> Files:
    """Add the pages that lie outside of docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        files.append(File.generated(config, f"{NOTEBOOKS}/{path.stem}.md", content=_notebook(path)))
    return files


def _notebook(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [(cell["cell_type"] == "code", "".join(cell["source"])) for cell in cells]
    title, *rest = (f"```python\n{text}\n```" if is_code else text for is_code, text in texts)
    note = f"Run it: `{NOTEBOOKS}/{path.name}` in the repository. A test runs it from top to bottom."
    return "\n\n".join([title, note, *rest])


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turn links and formulas of a page into those of the site; code stays as it is."""
    parts = _CODE.split(_linked(markdown, page.file.src_uri, files))
    return "".join(part if number % 2 else _FORMULA.sub(_formula, part) for number, part in enumerate(parts))


def on_post_page(output: str, page, config) -> str:
    """Leave out the script that the theme fetches from a network, for a search in pages that no server sends."""
    return _FETCHED.sub("", output)


def on_post_template(output: str, template_name: str, config) -> str:
    """Do the same for pages that have no Markdown: 404.html."""
    return _FETCHED.sub("", output)


def _formula(found: re.Match) -> str:
    # Within a span, so that a formula at the start of a line is part of its paragraph.
    return f"<span>{convert(' '.join(found[1].split()))}</span>"


def _linked(markdown: str, page: str, files: Files) -> str:
    """Return the text with links between pages; a link to a file that is no page becomes its text."""
    # Where the page lies in the repository.
    is_outside = page in OUTSIDE or page.startswith(NOTEBOOKS)
    folder = posixpath.dirname(page if is_outside else f"docs/{page}")

    def link(found: re.Match) -> str:
        text, target = found.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return found[0]
        path, anchor, fragment = target.partition("#")
        place = posixpath.normpath(posixpath.join(folder, path))
        place = posixpath.join(place, "README.md") if (ROOT / place / "README.md").is_file() else place
        uri = "README.md" if place == "README.md" else place.removeprefix("docs/")
        uri = re.sub(r"\.ipynb$", ".md", uri)
        if files.get_file_from_path(uri) is None:
            return text
        start = posixpath.dirname(page) or "."
        return f"[{text}]({posixpath.relpath(uri, start)}{anchor}{fragment})"

    return _LINK.sub(link, markdown)
