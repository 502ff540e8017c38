"""The page on advice names what the code measures."""

import re

from tests.support import advice_page
from tests.support.paths import ROOT
from tokenuq_ml.advice.measured import GOALS
from tokenuq_ml.advice.quantities import QUANTITIES
from tokenuq_ml.advice.verdicts import VERDICTS

PAGE = (ROOT / "docs" / "advice.md").read_text()


def names_of(heading: str) -> list[str]:
    """The first column of the table under a heading."""
    table = re.split(r"\n## ", PAGE.partition(heading)[2])[0]
    return re.findall(r"^\| `(\w+)`", table, re.MULTILINE)


def test_every_quantity_and_goal_is_in_its_table():
    assert names_of("## What is measured") == list(QUANTITIES)
    goals, verdicts = names_of("`--goal`")[: len(GOALS)], re.findall(r"^\| `([\w ]+)`", PAGE, re.MULTILINE)
    assert goals == list(GOALS) and set(VERDICTS) <= set(verdicts)


def test_the_rule_that_is_quoted_is_what_the_shipped_cells_give():
    assert advice_page.page_with(advice_page.rule_section()) == PAGE, "run python -m tests.support.advice_page"
