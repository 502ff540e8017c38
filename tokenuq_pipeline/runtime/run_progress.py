"""What a run has done, does and will do, asset by asset, and about how long the rest takes.

Knows names, times and messages only. `live_view.py` draws it.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from tokenuq_ml.progress import Measured, measured


class State(StrEnum):
    """What an asset does in a run."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    BLOCKED = "not made"
    """Something that it needs has failed."""


class Estimate(NamedTuple):
    """What a plan says that an asset takes, on a machine of any speed: runs correct it by what they measure."""

    seconds: float
    has_model: bool
    """Computes with a model. The others take the time of a process's start."""


Estimates = Mapping[str, Estimate]


@dataclass
class AssetProgress:
    """How far one asset is."""

    name: str
    state: State = State.WAITING
    began: float = 0.0
    seconds: float = 0.0
    """That it took."""
    said: str = ""
    """The last message that is no progress line."""
    measured: Measured | None = None
    measured_at: float = 0.0

    @property
    def kind(self) -> str:
        """Return the stage: assets of one stage are about equally far from their estimates."""
        return self.name.rpartition("/")[2] if self.name.count("/") != 1 else self.name

    def left(self, now: float) -> float | None:
        """Return the seconds that its last progress line leaves; None if there was none."""
        if self.measured is None:
            return None
        return max(0.0, self.measured.seconds_left - (now - self.measured_at))

    @property
    def is_one_part(self) -> bool:
        """Return whether the progress is that of the whole asset, not of the losses or answers that it consists of."""
        return self.measured is not None and self.measured.what == self.name


@dataclass
class RunProgress:
    """The assets of one or several runs, in order.

    Attributes:
        title: what is run, in words.
        estimate: returns what assets take, called as they are planned; may return fewer, or none.
        parallel: how many assets with a model are made at once.
        assets: by name.
        began: when the first run did.
    """

    title: str = ""
    estimate: Callable[[Collection[str]], Estimates] = field(default=lambda names: {})
    parallel: int = 1
    clock: Callable[[], float] = time.monotonic
    assets: dict[str, AssetProgress] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def plan(self, names: Collection[str]) -> None:
        """Add what the next run makes. What it makes once more waits again."""
        self.estimates |= self.estimate(names)
        for name in names:
            self.assets.pop(name, None)
            self.assets[name] = AssetProgress(name)

    def start(self, name: str) -> None:
        """Note that the work on an asset begins."""
        asset = self.assets.setdefault(name, AssetProgress(name))
        asset.state, asset.began, asset.measured, asset.said = State.RUNNING, self.clock(), None, ""

    def hear(self, name: str, message: str) -> None:
        """Note a message about an asset: how far it is, or anything else."""
        if (asset := self.assets.get(name)) is None:
            return
        if (found := measured(message)) is not None:
            asset.measured, asset.measured_at, asset.said = found, self.clock(), ""
        else:
            first = (message.strip().splitlines() or [""])[0]
            asset.said = first.removeprefix(f"{name}: ")

    def finish(self, name: str, seconds: float) -> None:
        """Note that an asset is made."""
        asset = self.assets.setdefault(name, AssetProgress(name))
        asset.state, asset.seconds = State.DONE, seconds
        if name.startswith("models/"):
            # A model of the hub has no size before, and so what is computed with it no estimate.
            self.estimates |= self.estimate([one.name for one in self.of(State.WAITING, State.RUNNING)])

    def fail(self, names: Iterable[str], blocked: Iterable[str] = ()) -> None:
        """Note what has failed, and what is not made because of it."""
        for state, some in ((State.FAILED, names), (State.BLOCKED, blocked)):
            for name in some:
                if name in self.assets and self.assets[name].state in (State.WAITING, State.RUNNING):
                    self.assets[name].state = state

    def of(self, *states: State) -> list[AssetProgress]:
        """Return the assets in some states, in order."""
        return [asset for asset in self.assets.values() if asset.state in states]

    @property
    def elapsed(self) -> float:
        """Return the seconds since the first run began."""
        return self.clock() - self.began

    def seconds_to_go(self) -> float | None:
        """Return about how long the rest takes; None if nothing is known yet.

        Each estimate is multiplied by the factor at which assets of the same stage have missed theirs in this run; if
        there is none, all assets with a model, or all without.
        """
        now, factors = self.clock(), self._factors()
        running, waiting = self.of(State.RUNNING), self.of(State.WAITING)
        left = {asset.name: self._left(asset, now, factors) for asset in (*running, *waiting)}
        if not left or None in left.values():
            return 0.0 if not left else None
        known = {name: seconds for name, seconds in left.items() if seconds is not None}
        return max(sum(known.values()) / self.parallel, max(known[asset.name] for asset in running) if running else 0.0)

    def _left(self, asset: AssetProgress, now: float, factors: Mapping[object, float]) -> float | None:
        measured_left = asset.left(now) if asset.state == State.RUNNING else None
        if measured_left is not None and asset.is_one_part:
            return measured_left
        estimate = self.estimates.get(asset.name)
        factor = None if estimate is None else factors.get(asset.kind, factors.get(estimate.has_model))
        if estimate is None or factor is None:
            return measured_left
        spent = now - asset.began if asset.state == State.RUNNING else 0.0
        return max(estimate.seconds * factor - spent, measured_left or 0.0, 0.0)

    def _factors(self) -> dict[object, float]:
        """Return measured seconds over estimated ones: by stage, and for all with a model (True) or without (False)."""
        sums: dict[object, tuple[float, float]] = {}
        for asset in self.of(State.DONE, State.RUNNING):
            estimate, seconds = self.estimates.get(asset.name), self._measured_seconds(asset)
            if estimate is None or seconds is None or estimate.seconds <= 0:
                continue
            for key in (asset.kind, estimate.has_model):
                real, planned = sums.get(key, (0.0, 0.0))
                sums[key] = real + seconds, planned + estimate.seconds
        # Until one without a model is done: they do little, and their estimate is that of a process's start.
        return {False: 1.0} | {key: real / planned for key, (real, planned) in sums.items()}

    def _measured_seconds(self, asset: AssetProgress) -> float | None:
        """Return what an asset has taken, or will take by its own progress."""
        if asset.state == State.DONE:
            return asset.seconds
        if asset.measured is None or not asset.is_one_part or not asset.measured.done:
            return None
        return asset.measured_at - asset.began + asset.measured.seconds_left


def in_words(seconds: float) -> str:
    """Return a duration, to the second or the minute: `42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def about(seconds: float) -> str:
    """Return a duration that is an estimate: `about 40 s`, `about 4 min`, `about 2.5 h`."""
    if seconds < 55:
        return f"about {max(10, round(seconds / 10) * 10)} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
