"""Damaged stores: whatever happens to a file of a complete study is found, named, not served, and repaired."""

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
FINGERPRINTS = ".fingerprints.json"
OTHER_TABLE = "rejected_rows"
"""A table that none of the kinds of damage touches."""


@dataclass(frozen=True)
class Damage:
    """One kind of damage."""

    name: str
    path: str
    """The file, relative to the store; may be a glob with one match."""
    alter: Callable[[Path], None]
    asset: str
    """The asset, or the file of no asset, that must be named."""
    table: str | None = None
    """The table whose queries must be refused."""


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


def kinds(study: str, ablation: str, model: str, dataset: str) -> list[Damage]:
    """Return the kinds of damage to a study's store."""
    losses, uncertainty, teacher = (
        f"{study}/{name}" for name in ("token_losses", "token_uncertainty", "baseline_teacher")
    )
    student, evaluation = f"{study}/{ablation}/student", f"{study}/{ablation}/evaluation"
    tables = {name: f"{name}/study={study}/part-0.parquet" for name in ("token_losses", "token_uncertainty")}
    tables |= {
        name: f"{name}/study={study}/ablation={ablation}/part-0.parquet" for name in ("selections", "evaluations")
    }
    adapter, teachers = f"student/study={study}/ablation={ablation}/adapter", f"baseline_teacher/study={study}/adapter"
    weights, manifest = f"models/{model}/model.safetensors", f".manifests/{losses}.json"
    return [
        Damage("a byte of a table inverted", tables["token_losses"], flip(0.5), losses, "token_losses"),
        Damage(
            "a byte of a table's footer inverted",
            tables["token_uncertainty"],
            flip(0.97),
            uncertainty,
            "token_uncertainty",
        ),
        Damage("a table cut in half", tables["token_uncertainty"], truncate(0.5), uncertainty, "token_uncertainty"),
        Damage("a table emptied", tables["selections"], truncate(0), student, "selections"),
        Damage("a byte appended to a table", tables["evaluations"], append, evaluation, "evaluations"),
        Damage("a table deleted", f"examples/dataset={dataset}/part-0.parquet", Path.unlink, f"datasets/{dataset}"),
        Damage("a table replaced by a folder", tables["token_losses"], to_folder, losses),
        Damage(
            "a table replaced by a link to its copy outside", tables["token_losses"], to_link, losses, "token_losses"
        ),
        Damage("a second file of rows in a table's folder", tables["token_losses"], second_part, losses),
        Damage("a byte of a student's adapter inverted", f"{adapter}/adapter_model.safetensors", flip(0.9), student),
        Damage("a student's adapter configuration cut", f"{adapter}/adapter_config.json", truncate(0.3), student),
        Damage(
            "the teacher's adapter deleted",
            f"{teachers}/adapter_model.safetensors",
            Path.unlink,
            teacher,
        ),
        Damage(
            "a byte of the teacher's states inverted",
            f"teacher_hidden/study={study}/hidden.safetensors",
            flip(0.6),
            f"{study}/teacher_hidden",
        ),
        Damage("a NaN in the base model", weights, nan_weight, f"models/{model}"),
        Damage("the tokenizer overwritten", f"models/{model}/tokenizer.json", overwrite(b"{}"), f"models/{model}"),
        Damage(
            "the report overwritten",
            f"ablation_report/study={study}/report.html",
            overwrite(b"<html>"),
            f"{study}/ablation_report",
        ),
        Damage("a manifest cut", manifest, truncate(0.4), losses),
        Damage("a manifest that is not JSON", manifest, overwrite(b"data_version: 1\n"), losses),
        Damage("a manifest that is a list", manifest, overwrite(b"[1, 2]"), losses),
        Damage("a manifest that is not UTF-8", manifest, overwrite(b'{"asset": "\xff\xfe"}'), losses),
        Damage("a manifest that is empty", manifest, overwrite(b""), losses),
        Damage("a manifest that is a folder", manifest, to_folder, losses),
        Damage("a manifest with places outside the store", manifest, edited(outputs={"x": "../outside"}), losses),
        Damage("a manifest with another data version", manifest, edited(data_version="forged"), losses, "token_losses"),
        Damage("a manifest of another asset", manifest, other_manifest, losses),
        Damage("fingerprints that are not JSON", FINGERPRINTS, overwrite(b"\xff{"), FINGERPRINTS),
        Damage("fingerprints that are a folder", FINGERPRINTS, to_folder, FINGERPRINTS),
    ]


DAMAGE = kinds(STUDY, "s_mle", "tiny_llama", "sums")


def damages(folder: Path, whole: TrialStudy, calm: Calm, record: Record, deadline: float) -> None:
    """Make the trials that the record lacks until `deadline`."""
    for number, damage in enumerate(DAMAGE[len(record.trials(PART)) :], len(record.trials(PART)) + 1):
        if time.monotonic() > deadline:
            return
        started = time.monotonic()
        study = whole.copy_to(folder / "damaged")
        damage.alter(study.store.path(damage.path))
        found, wrong = _look(study, damage)
        repaired, more = _repair(study, calm)
        found = f"{found}; {repaired}"
        record.add(Trial(PART, number, damage.name, found, (*wrong, *more), time.monotonic() - started))


def _look(study: TrialStudy, damage: Damage) -> tuple[str, list[str]]:
    """Ask every command that reads the store."""
    wrong, said = [], ""
    answers = {
        "query of it": study.tokenuq("query", f"SELECT count(*) FROM {damage.table or OTHER_TABLE}"),
        "query of another table": study.tokenuq("query", f"SELECT count(*) FROM {OTHER_TABLE}"),
        "status": study.tokenuq("status", "--study", STUDY, "--deep"),
        "verify": study.tokenuq("verify"),
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
    code, printed = answers["verify"]
    if damage.asset == FINGERPRINTS:
        # A cache, which the first command that reads it names and replaces.
        code, printed = 1, next((text for _, text in answers.values() if FINGERPRINTS in text), "")
    if code == 0 or damage.asset not in printed:
        wrong.append(f"verify ends with {code} and does not name {damage.asset}: {printed[-300:]}")
    else:
        line = next(line for line in printed.splitlines() if damage.asset in line)
        said += f"verify: “{line.strip()[:160]}”"
    return said or "nothing refused", wrong


def _repair(study: TrialStudy, calm: Calm) -> tuple[str, list[str]]:
    """Do what the messages say."""
    study.tokenuq("verify", "--forget")
    code, printed = study.run()
    wrong = [] if code == 0 else [f"after verify --forget: exit code {code}: {printed[-500:]}"]
    wrong += calm.wrong(study) + [f"{name} is missing" for name in calm.missing(study)]
    made = printed.count(" done in ")
    return f"repaired by verify --forget and {made} assets made again", wrong
