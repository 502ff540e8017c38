"""One frame of the live view as text: a line per asset, as many as fit, and a line that sums up.

Pure: the same progress and size give the same frame.
"""

from typing import NamedTuple

from rich.console import ConsoleDimensions
from rich.text import Text

from tokenuq_ml.control_characters import escaped_line
from tokenuq_pipeline.runtime.run_progress import AssetProgress, RunProgress, State, about, in_words

BAR = 16
WIDE, NARROW = 90, 56
"""Columns from which a line has details, and a bar."""
LEAST_NAME = 12
STYLES = {
    State.WAITING: "dim",
    State.RUNNING: "bold",
    State.DONE: "green",
    State.FAILED: "bold red",
    State.BLOCKED: "dim red",
}


class Signs(NamedTuple):
    """Characters of a frame."""

    states: dict[State, str]
    full: str
    empty: str
    cut: str
    separator: str


UNICODE = Signs(
    {State.WAITING: "·", State.RUNNING: "▸", State.DONE: "✓", State.FAILED: "✗", State.BLOCKED: "–"},
    "━",
    "─",
    "…",
    " · ",
)
ASCII = Signs(
    {State.WAITING: ".", State.RUNNING: ">", State.DONE: "+", State.FAILED: "x", State.BLOCKED: "-"},
    "#",
    ".",
    "~",
    ", ",
)


def frame(progress: RunProgress, size: ConsoleDimensions, ascii_only: bool = False) -> Text:
    """Return the frame.

    Args:
        progress: what the runs have done and will do.
        size: columns and lines of the terminal.
        ascii_only: of the terminal's encoding.
    """
    signs = ASCII if ascii_only else UNICODE
    # The last column stays free: some terminals wrap there. One line is the summary, one that of the cursor.
    width, height = max(size.width - 1, 10), max(size.height - 2, 1)
    rows = _rows(progress, height, signs)
    longest = max((len(name) for name, _ in rows if name), default=LEAST_NAME)
    shown = [_line(progress, name, asset, longest, width, signs) for name, asset in rows]
    return Text("\n").join([*shown, _summary(progress, width, signs)])


Row = tuple[str, AssetProgress | str]
"""The name of an asset and its progress, or nothing and a text about several."""


def _rows_of(assets: list[AssetProgress]) -> list[Row]:
    return [(asset.name, asset) for asset in assets]


def _rows(progress: RunProgress, height: int, signs: Signs) -> list[Row]:
    """Return the lines that fit: what runs or has failed first, then what was done last and what comes next."""
    assets = list(progress.assets.values())
    if len(assets) <= height:
        return _rows_of(assets)
    done, waiting = progress.of(State.DONE), progress.of(State.WAITING, State.BLOCKED)
    urgent = progress.of(State.RUNNING, State.FAILED)
    if len(urgent) + 2 > height:
        # What runs is more interesting than what has failed, whose reasons are printed at the end.
        urgent.sort(key=lambda asset: asset.state != State.RUNNING)
        shown = urgent[: max(height - 1, 1)]
        rest = f"{signs.cut} {len(assets) - len(shown)} more"
        return [*_rows_of(shown), ("", rest)][:height]
    free = height - len(urgent) - 2
    next_ones = waiting[: max(free - len(done), free // 2)]
    last_ones = done[len(done) - min(len(done), free - len(next_ones)) :]
    hidden_done, hidden_waiting = len(done) - len(last_ones), waiting[len(next_ones) :]
    kept = {asset.name for asset in (*urgent, *last_ones, *next_ones)}
    rows: list[Row] = []
    if hidden_done:
        seconds = sum(asset.seconds for asset in done[:hidden_done])
        rows.append(("", f"{signs.states[State.DONE]} {hidden_done} done before, in {in_words(seconds)}"))
    rows += _rows_of([asset for asset in assets if asset.name in kept])
    if hidden_waiting:
        rows.append(("", f"{signs.states[State.WAITING]} {len(hidden_waiting)} more wait"))
    return rows


def _line(progress: RunProgress, name: str, asset: AssetProgress | str, longest: int, width: int, signs: Signs) -> Text:
    """Return one line: sign, name, what the asset does, and its time at the right."""
    if isinstance(asset, str):
        return _cut(Text(asset, "dim"), width, signs)
    now = progress.clock()
    time = ""
    if asset.state == State.RUNNING:
        time = in_words(now - asset.began)
    elif asset.state == State.DONE:
        time = in_words(asset.seconds)
    # Sign, name and time; what is between them gets the rest.
    room = width - 2 - len(time) - 2
    wanted = min(longest, max(room - _middle(width), LEAST_NAME), room)
    text = Text(f"{signs.states[asset.state]} ", STYLES[asset.state])
    shown = _cut(Text(escaped_line(name), STYLES[asset.state]), wanted, signs)
    text.append_text(shown.append(" " * max(0, wanted - shown.cell_len)))
    middle = _what(asset, now, width, signs)
    text.append("  ").append_text(_cut(middle, max(0, width - text.cell_len - 2 - len(time)), signs))
    if time:
        text.append(" " * max(1, width - text.cell_len - len(time))).append(time)
    return _cut(text, width, signs)


def _middle(width: int) -> int:
    """Return the columns that what an asset does has at least."""
    return BAR + 24 if width >= WIDE else BAR + 8 if width >= NARROW else 8


def _what(asset: AssetProgress, now: float, width: int, signs: Signs) -> Text:
    """Return what an asset does: a bar with its rate, its last message, or its state in a word."""
    if asset.state == State.DONE:
        return Text()
    if asset.state != State.RUNNING:
        return Text(str(asset.state.value), STYLES[asset.state])
    found = asset.measured
    if found is None or asset.said:
        return Text(escaped_line(asset.said) or "running", "dim")
    share = min(1.0, found.done / max(found.total, 1))
    text = Text()
    if width >= NARROW:
        filled = round(share * BAR)
        text.append(signs.full * filled, "cyan").append(signs.empty * (BAR - filled), "dim").append(" ")
    text.append(f"{share:>4.0%}")
    if width >= WIDE:
        part = found.what.removeprefix(asset.name).strip(": ")
        left = asset.left(now) or 0.0
        details = [part, f"{found.done:,}/{found.total:,} {found.unit}", f"{in_words(left)} left", found.details]
        text.append(escaped_line("  " + signs.separator.join(filter(None, details))), "dim")
    return text


def _summary(progress: RunProgress, width: int, signs: Signs) -> Text:
    """Return the last line: how much is done, how long that took, and about how long the rest takes."""
    done, failed = len(progress.of(State.DONE)), len(progress.of(State.FAILED))
    parts = [f"{done} of {len(progress.assets)} done"]
    if failed:
        parts.append(f"{failed} failed")
    parts.append(in_words(progress.elapsed))
    left = progress.seconds_to_go()
    if left is None and progress.estimates:
        parts.append("estimating the time to go")
    elif left:
        parts.append(f"{about(left)} to go")
    text = signs.separator.join([progress.title, *parts] if progress.title else parts)
    if Text(text).cell_len > width:
        # The title is what a person knows.
        text = signs.separator.join(parts)
    return _cut(Text(text, "bold"), width, signs)


def _cut(text: Text, width: int, signs: Signs) -> Text:
    """Return a text that is no wider than `width`; a cut one ends with a sign."""
    if text.cell_len <= width:
        return text
    shortened = text.copy()
    shortened.truncate(max(0, width - 1))
    return shortened.append(signs.cut)
