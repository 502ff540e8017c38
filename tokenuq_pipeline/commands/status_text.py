"""What `tokenuq status` prints: one line per study with counts, and a table of the assets that are not fresh."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Row = dict[str, str]
"""One asset that is not fresh: `asset`, `state`, `reason`."""
STALE_STATES = ("damaged", "stale", "unchecked")
"""States that a run, or `tokenuq verify --forget`, has to change. What was never made is not stale."""
STATES = (*STALE_STATES, "waiting", "missing")
FRESH, NOT_MADE, INCOMPLETE = "fresh", "not made", "incomplete"


@dataclass(frozen=True)
class StudyStatus:
    """A study or comparison in one line."""

    study: str
    assets: int
    """Its own, and the models and datasets that it needs."""
    rows: Sequence[Row]
    """Those that are not fresh."""
    made: bool
    """The store holds anything of the study itself."""

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of assets by state."""
        found = Counter(row["state"] for row in self.rows)
        return {FRESH: self.assets - len(self.rows)} | {state: found[state] for state in STATES}

    @property
    def state(self) -> str:
        """Return the state of the study: the worst of its assets, or that it was never made."""
        if not self.made:
            return NOT_MADE
        worst = next((state for state in STALE_STATES if self.counts[state]), None)
        return worst or (INCOMPLETE if self.rows else FRESH)

    @property
    def line(self) -> str:
        """Return the counts in words."""
        if self.state == NOT_MADE:
            return f"{_assets(self.counts['missing'])} to make"
        if self.state == FRESH:
            return _assets(self.assets)
        return ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)

    def as_json(self) -> dict[str, str | int]:
        """Return the study with its counts."""
        return {"study": self.study, "state": self.state, **self.counts}


def _assets(count: int) -> str:
    return f"{count} asset{'' if count == 1 else 's'}"


def is_stale(rows: Iterable[Row]) -> bool:
    """Return whether any asset is stale, damaged or unchecked."""
    return any(row["state"] in STALE_STATES for row in rows)


def as_lines(studies: Sequence[StudyStatus]) -> str:
    """Return a line per study: its name, state and counts."""
    if not studies:
        return "no study is enabled or made; `tokenuq status --all` lists those of studies.yaml"
    name, state = (max(map(len, column)) for column in zip(*((one.study, one.state) for one in studies), strict=True))
    return "\n".join(f"{one.study:<{name}}  {one.state:<{state}}  {one.line}" for one in studies)


def where_details_are(studies: Sequence[StudyStatus]) -> str | None:
    """Return the command that lists what is not fresh; None if every study is fresh or was never made."""
    names = [one.study for one in studies if one.state not in (FRESH, NOT_MADE)]
    commands = [" ".join(["", *(f"--study {name}" for name in names if "/" not in name)])]
    commands += [f" --comparison {name.partition('/')[2]}" for name in names if "/" in name]
    listed = "; ".join(f"tokenuq status{options}" for options in commands if options)
    return f"which assets, and why: {listed}" if names else None


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows as an aligned table; the empty text if there are none."""
    if not rows:
        return ""
    name, state = (max(len(row[column]) for row in rows) for column in ("asset", "state"))
    return "\n".join(f"{row['asset']:<{name}}  {row['state']:<{state}}  {row['reason']}" for row in rows)
