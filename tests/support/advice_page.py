"""The part of `docs/advice.md` that quotes the rule which ships: `python -m tests.support.advice_page` writes it."""

from tests.support.paths import ROOT
from tokenuq_ml.advice.measured import CASES_FILE, CELLS_FILE, GOALS, SHIPPED, read_measured
from tokenuq_pipeline.commands.advise import rule_text

PAGE = ROOT / "docs" / "advice.md"
BEGIN, END = "<!-- rule: begin -->\n", "<!-- rule: end -->\n"


def rule_section() -> str:
    """Return the text between the markers: what `tokenuq advise` prints for each goal."""
    cells, cases = (read_measured(SHIPPED / name) for name in (CELLS_FILE, CASES_FILE))
    parts = []
    for number, goal in enumerate(GOALS.values()):
        option = f" --goal {goal.name}" if number else ""
        parts.append(
            f"```bash\n.venv/bin/tokenuq advise{option}\n```\n\n```text\n{rule_text(cells, cases, goal)}\n```\n"
        )
    return "\n".join(parts)


def page_with(section: str) -> str:
    """Return the page with this text between the markers."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{section}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page_with(rule_section()))
