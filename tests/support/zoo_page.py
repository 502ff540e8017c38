"""The part of `docs/models.md` about every model type of transformers: `python -m tests.support.zoo_page` writes it."""

import transformers

from tests.support.paths import ROOT
from tests.support.zoo import KINDS
from tests.support.zoo_outcomes import Outcome, outcome_of

PAGE = ROOT / "docs/models.md"
BEGIN, END = "<!-- zoo: begin -->\n", "<!-- zoo: end -->\n"


def zoo_section(outcomes: dict[str, Outcome]) -> str:
    """Return the text between the markers, from what becomes of each model type."""
    right = {kind: found for kind, found in outcomes.items() if found.outcome == "right"}
    own = {kind: found.reason for kind, found in right.items() if found.reason}
    others = {kind: found for kind, found in outcomes.items() if found.outcome != "right"}
    rows = [f"| `{kind}` | {found.outcome} | {found.reason} |" for kind, found in others.items()]
    return "\n".join(
        [
            f"transformers {transformers.__version__} has {len(outcomes)} types of causal language models, of which "
            f"{len(right)} are right:",
            "",
            _names(right),
            "",
            "These compute their logits by their own forward pass, which takes more memory:",
            "",
            *(f"- {_names(kinds)}: {reason}" for reason, kinds in _by_reason(own).items()),
            "",
            "| type | outcome | why |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _names(kinds) -> str:
    return ", ".join(f"`{kind}`" for kind in kinds)


def _by_reason(reasons: dict[str, str]) -> dict[str, list[str]]:
    return {reason: [kind for kind in reasons if reasons[kind] == reason] for reason in reasons.values()}


def section_of_page() -> str:
    """Return what the page has between the markers."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    section = zoo_section({kind: outcome_of(kind) for kind in KINDS})
    PAGE.write_text(before + BEGIN + section + END + after)


if __name__ == "__main__":
    main()
