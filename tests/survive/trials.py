"""The record of trials: a JSON line each, so that a stopped `make survive` goes on where it was."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """One trial: what was done, and what was found after it."""

    part: str
    number: int
    done: str
    found: str
    wrong: tuple[str, ...] = ()
    """What must not be. Empty: the trial held."""
    seconds: float = 0.0

    @property
    def held(self) -> bool:
        return not self.wrong


class Record:
    """The file that holds the trials."""

    def __init__(self, path: Path):
        self.path = path

    def trials(self, part: str | None = None) -> list[Trial]:
        """Return the trials of a part, or all, in the order in which they were made."""
        return [trial for trial in self._read() if part in (None, trial.part)]

    def add(self, trial: Trial) -> None:
        """Append a trial and print it."""
        with open(self.path, "a") as file:
            file.write(json.dumps(asdict(trial)) + "\n")
        mark = "held" if trial.held else "DID NOT HOLD: " + "; ".join(trial.wrong)
        print(f"{trial.part} {trial.number}: {trial.done}: {trial.found}: {mark} ({trial.seconds:.0f} s)", flush=True)

    def _read(self) -> Iterator[Trial]:
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                fields = json.loads(line)
                yield Trial(**{**fields, "wrong": tuple(fields["wrong"])})
