"""Damaged stores: whatever happens to a file of a complete study is found, named, not served, and mended."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.survive.study import STUDY, Calm, TrialStudy
from tests.survive.trials import Record, Trial

PART = "damage"
OTHER_TABLE = "rejected_rows"
"""A table that none of the kinds of damage touches."""


@dataclass(frozen=True)
class Damage:
    """One kind of damage."""

    name: str
    path: str
    """The file, relative to the store; may be a glob with one match."""
    alter: Callable[[Path], None]
    asset: str | None = None
    """The asset that must be named; None: nothing is wrong with any asset."""
    table: str | None = None
    """The table whose queries must be refused."""
    seen_by: str = "verify"
    """The command that names it: `verify`, or `status`."""


def flip(share: float) -> Callable[[Path], None]:
    """Return what inverts one byte, at this share of the file."""

    def alter(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 0xFF
        path.write_bytes(content)

    return alter


def truncate(share: float) -> Callable[[Path], None]:
    """Return what keeps only this share of the file."""
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def append(path: Path) -> None:
    """Append a byte."""
    path.write_bytes(path.read_bytes() + b"\n")


def overwrite(content: bytes) -> Callable[[Path], None]:
    """Return what replaces the content."""
    return lambda path: path.write_bytes(content)


def to_folder(path: Path) -> None:
    """Replace the file by a folder."""
    path.unlink()
    path.mkdir()


def to_link(path: Path) -> None:
    """Replace the file by a link to a copy of it outside the store."""
    outside = Path(tempfile.mkdtemp(prefix="survive-")) / path.name
    shutil.move(path, outside)
    path.symlink_to(outside)


def second_part(path: Path) -> None:
    """Put a second file of rows beside the first."""
    shutil.copy(path, path.with_name("part-1.parquet"))


def nan_weight(path: Path) -> None:
    """Write a NaN into the middle of a file of tensors."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 8 * 4
    content[middle : middle + 4] = b"\0\0\xc0\x7f"
    path.write_bytes(content)


def edited(**fields) -> Callable[[Path], None]:
    """Return what replaces fields of a manifest."""
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def other_manifest(path: Path) -> None:
    """Replace a manifest by that of another asset."""
    shutil.copy(path.with_name("token_uncertainty.json"), path)


def _table(name: str) -> str:
    return f"{name}/study={STUDY}/part-0.parquet"


def _student(name: str) -> str:
    return f"{name}/study={STUDY}/ablation=s_mle"


LOSSES, UNCERTAINTY = f"{STUDY}/token_losses", f"{STUDY}/token_uncertainty"
STUDENT, EVALUATION = f"{STUDY}/s_mle/student", f"{STUDY}/s_mle/evaluation"
ADAPTER, TEACHER = f"{_student('student')}/adapter", f"baseline_teacher/study={STUDY}/adapter"
MANIFEST = f".manifests/{LOSSES}.json"
DAMAGE = [
    Damage("a byte of a table inverted", _table("token_losses"), flip(0.5), LOSSES, "token_losses"),
    Damage(
        "a byte of a table's footer inverted", _table("token_uncertainty"), flip(0.97), UNCERTAINTY, "token_uncertainty"
    ),
    Damage("a table cut in half", _table("token_uncertainty"), truncate(0.5), UNCERTAINTY, "token_uncertainty"),
    Damage("a table emptied", f"{_student('selections')}/part-0.parquet", truncate(0), STUDENT, "selections"),
    Damage(
        "a byte appended to a table", f"{_student('evaluations')}/part-0.parquet", append, EVALUATION, "evaluations"
    ),
    Damage("a table deleted", "examples/dataset=sums/part-0.parquet", Path.unlink, "datasets/sums"),
    Damage("a table replaced by a folder", _table("token_losses"), to_folder, LOSSES),
    Damage("a table replaced by a link to its copy outside", _table("token_losses"), to_link, LOSSES, "token_losses"),
    Damage("a second file of rows in a table's folder", _table("token_losses"), second_part, LOSSES),
    Damage("a byte of a student's adapter inverted", f"{ADAPTER}/adapter_model.safetensors", flip(0.9), STUDENT),
    Damage("a student's adapter configuration cut", f"{ADAPTER}/adapter_config.json", truncate(0.3), STUDENT),
    Damage(
        "the teacher's adapter deleted",
        f"{TEACHER}/adapter_model.safetensors",
        Path.unlink,
        f"{STUDY}/baseline_teacher",
    ),
    Damage(
        "a byte of the teacher's states inverted",
        f"teacher_hidden/study={STUDY}/hidden.safetensors",
        flip(0.6),
        f"{STUDY}/teacher_hidden",
    ),
    Damage("a NaN in the base model", "models/tiny_llama/model.safetensors", nan_weight, "models/tiny_llama"),
    Damage("the tokenizer overwritten", "models/tiny_llama/tokenizer.json", overwrite(b"{}"), "models/tiny_llama"),
    Damage(
        "the report overwritten",
        f"ablation_report/study={STUDY}/report.html",
        overwrite(b"<html>"),
        f"{STUDY}/ablation_report",
    ),
    Damage("a manifest cut", MANIFEST, truncate(0.4), LOSSES),
    Damage("a manifest that is not JSON", MANIFEST, overwrite(b"data_version: 1\n"), LOSSES),
    Damage("a manifest that is a list", MANIFEST, overwrite(b"[1, 2]"), LOSSES),
    Damage("a manifest that is not UTF-8", MANIFEST, overwrite(b'{"asset": "\xff\xfe"}'), LOSSES),
    Damage("a manifest that is empty", MANIFEST, overwrite(b""), LOSSES),
    Damage("a manifest that is a folder", MANIFEST, to_folder, LOSSES),
    Damage("a manifest with places outside the store", MANIFEST, edited(outputs={"x": "../outside"}), LOSSES),
    Damage("a manifest with another data version", MANIFEST, edited(data_version="forged"), LOSSES, seen_by="status"),
    Damage("a manifest of another asset", MANIFEST, other_manifest, LOSSES),
    Damage("fingerprints that are not JSON", ".fingerprints.json", overwrite(b"\xff{"), None),
    Damage("fingerprints that are a folder", ".fingerprints.json", to_folder, None),
]


def damages(folder: Path, whole: TrialStudy, calm: Calm, record: Record, deadline: float) -> None:
    """Make the trials that the record lacks until `deadline`."""
    for number, damage in enumerate(DAMAGE[len(record.trials(PART)) :], len(record.trials(PART)) + 1):
        if time.monotonic() > deadline:
            return
        started = time.monotonic()
        study = whole.copy_to(folder / "damaged")
        damage.alter(study.store.path(damage.path))
        found, wrong = _look(study, damage)
        mended, more = _mend(study, calm)
        record.add(Trial(PART, number, damage.name, f"{found}; {mended}", (*wrong, *more), time.monotonic() - started))


def _look(study: TrialStudy, damage: Damage) -> tuple[str, list[str]]:
    """Ask every command that reads the store."""
    wrong, said = [], ""
    answers = {
        "query of it": study.tokenuq("query", f"SELECT count(*) FROM {damage.table or OTHER_TABLE}"),
        "query of another table": study.tokenuq("query", f"SELECT count(*) FROM {OTHER_TABLE}"),
        "status": study.tokenuq("status", "--study", STUDY, "--deep"),
        "verify": study.tokenuq("verify", "--study", STUDY),
        "prune": study.tokenuq("prune"),
    }
    for command, (_, printed) in answers.items():
        if "Traceback" in printed:
            wrong.append(f"{command}: a traceback: {printed[-500:]}")
    if answers["query of another table"][0] != 0:
        wrong.append(f"a query of another table fails: {answers['query of another table'][1][-300:]}")
    if damage.table:
        code, printed = answers["query of it"]
        said = f"“{printed.strip()[-160:]}”; "
        if code == 0:
            wrong.append("a query of the damaged table is answered")
    code, printed = answers[damage.seen_by]
    if damage.asset is None:
        wrong += [f"{damage.seen_by} ends with {code}: {printed[-300:]}"] if code else []
    elif code == 0 or damage.asset not in printed:
        wrong.append(f"{damage.seen_by} ends with {code} and does not name {damage.asset}: {printed[-300:]}")
    else:
        line = next(line for line in printed.splitlines() if damage.asset in line)
        said += f"{damage.seen_by}: “{line.strip()[:160]}”"
    return said or "nothing refused", wrong


def _mend(study: TrialStudy, calm: Calm) -> tuple[str, list[str]]:
    """Do what the messages say."""
    study.tokenuq("verify", "--forget")
    code, printed = study.run()
    wrong = [] if code == 0 else [f"after verify --forget: exit code {code}: {printed[-500:]}"]
    wrong += calm.wrong(study) + [f"{name} is missing" for name in calm.missing(study)]
    made = printed.count(" done in ")
    return f"mended by verify --forget and {made} assets made again", wrong
