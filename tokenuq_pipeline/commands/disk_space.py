"""Free space compared with what a run will write: for `tokenuq plan`, and before `tokenuq run` computes anything.

A run is refused, not warned of: it would fail after hours, and its warning would be out of sight by then. What is
compared is an estimate, so that `--ignore-disk-space` runs it all the same; a full disk loses nothing. Runs that
schedules and sensors start are not refused: nobody is there to read it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenuq_ml.disk import DiskFull, held_in_stores
from tokenuq_ml.disk_space import Space, in_words, space, temporary_folder

RECORDS_BYTES, TEMPORARY_BYTES = 250_000, 2**20
"""What Dagster records of one asset, with logs, measured on the tiny study of the tests; and what any run keeps in the
folder for temporary files."""
HUB_CACHE = "the hub's cache"
"""The part of an estimate that is downloaded to the folder of Hugging Face's libraries."""
OVERRIDE = "--ignore-disk-space"


@dataclass
class Need:
    """What a run writes to one disk, the most at any time.

    Attributes:
        disk: what it has.
        bytes: what is needed.
        parts: what for, by name; may be more together, since not all are there at once.
    """

    disk: Space
    bytes: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        """Return whether the disk has that much free space."""
        return self.bytes <= self.disk.free

    def __str__(self) -> str:
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        listed = ", ".join(f"{in_words(size)} for {name}" for name, size in largest)
        return (
            f"{self.disk} has too little space: about {in_words(self.bytes)} are needed (the largest parts: {listed}), "
            f"and {in_words(self.disk.free)} of {in_words(self.disk.total)} are free"
        )


def disk_needs(rows: Iterable[Mapping], store) -> list[Need]:
    """Return what the assets of a plan need, per disk: of the store, of downloads, of Dagster's records, of `TMPDIR`.

    Args:
        rows: of a plan, one per asset that is made.
        store: where they go; an asset that is made again gives the space of its older version back.
    """
    made = list(rows)
    if not made:
        return []
    needs: dict[Path, Need] = {}

    def add(path: Path, size: float, parts: Mapping[str, float]) -> None:
        disk = space(path)
        need = needs.setdefault(disk.mount, Need(disk))
        need.bytes += size
        need.parts |= parts

    add(store.home, *_in_store(made, store))
    downloads = {row["asset"]: row["passing_disk"].get(HUB_CACHE, 0.0) for row in made}
    add(_hub_cache(), sum(downloads.values()), {f"the download of {name}": size for name, size in downloads.items()})
    if home := os.environ.get("DAGSTER_HOME"):
        add(Path(home), RECORDS_BYTES * len(made), {"Dagster's records": RECORDS_BYTES * len(made)})
    add(temporary_folder(), TEMPORARY_BYTES, {"temporary files": TEMPORARY_BYTES})
    return list(needs.values())


def shortages(needs: Iterable[Need]) -> list[str]:
    """Return a sentence for each disk with too little space."""
    return [str(need) for need in needs if not need.is_met]


def require_disk_space(rows: Iterable[Mapping], store) -> None:
    """Check that a run has the space that it needs.

    Raises:
        DiskFull: a disk has too little; the message names it, and says how to go on.
    """
    if found := shortages(disk_needs(rows, store)):
        held = "".join(f"; {part}" for part in held_in_stores([store.home]))
        raise DiskFull(f"{'; '.join(found)}{held}; make space, or run with {OVERRIDE}: it is an estimate")


def _in_store(made: list[Mapping], store) -> tuple[float, dict[str, float]]:
    """Return the most that the store grows by while the assets are made one after another, and the parts of it."""
    grown = most = 0.0
    parts = {"checkpoints": 0.0}
    for row in made:
        stays = sum(row["disk"].values())
        passes = sum(size for name, size in row["passing_disk"].items() if name != HUB_CACHE)
        most = max(most, grown + stays + passes)
        grown += stays - _bytes_of(store, row["asset"])
        parts[row["asset"]], parts["checkpoints"] = stays, max(parts["checkpoints"], passes)
    return most, parts


def _bytes_of(store, asset: str) -> int:
    manifest = store.read_manifest(asset)
    return sum(file.bytes for file in manifest.files) if manifest is not None else 0


def _hub_cache() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
