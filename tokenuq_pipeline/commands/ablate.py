"""`tokenuq ablate`: from a model and a data file to an ablation table, without writing a YAML file.

The study that it makes is one like any other: its entries are kept in a folder, and every command knows it.
"""

import argparse
import contextlib
import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from tokenuq_ml.atomic_files import atomic_write
from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_ml.redaction import redacted
from tokenuq_pipeline.commands import plan, run
from tokenuq_pipeline.commands.common import configuration, positive_integer
from tokenuq_pipeline.commands.json_output import print_json
from tokenuq_pipeline.commands.make_assets import add_arguments
from tokenuq_pipeline.commands.score import add_data_format

ABLATIONS = ("mle_s0", "masked_mle_top25_s0", "paper_top25_s0")
"""The paper's three objectives, one seed each."""
FOLDER = "tokenuq_config"
"""Folder of new entries in the working directory, unless `$TOKENUQ_CONFIG` names one."""


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "ablate",
        help="make a study of flags, plan it, ask, and run it",
        description="Makes a study of a model and of data, prints its entries and its plan, and runs it after a "
        f"question. The entries are added to the folder $TOKENUQ_CONFIG, by default ./{FOLDER}, so that every other "
        "command knows the study. The same command again continues it.",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a model in models.yaml, a folder in Hugging Face's format, a GGUF file, or an id on the hub",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a dataset in datasets.yaml, a file, a folder, an address, or an id on the hub",
    )
    parser.add_argument(
        "--ood",
        action="append",
        default=[],
        metavar="DATA",
        help="data out of distribution, evaluated only; repeatable",
    )
    parser.add_argument(
        "--ablation",
        action="append",
        nargs="+",
        metavar="NAME",
        help=f"ablations in ablations.yaml; repeatable; default: {' '.join(ABLATIONS)}",
    )
    parser.add_argument(
        "--study", "--name", dest="name", metavar="STUDY", help="name of the new study; default: of data and model"
    )
    add_data_format(parser)
    parser.add_argument("--rows", type=positive_integer, metavar="N", help="draw only N rows, 80%% of them to train on")
    parser.add_argument(
        "--max-length",
        type=positive_integer,
        default=1024,
        metavar="N",
        help="tokens after which an example is cut; default: 1024",
    )
    parser.add_argument("--epochs", type=positive_integer, default=1, metavar="N", help="of each training; default: 1")
    parser.add_argument(
        "--batch-size", type=positive_integer, default=8, metavar="N", help="examples per step; default: 8"
    )
    parser.add_argument(
        "--learning-rate",
        type=_rate,
        default=2e-4,
        metavar="RATE",
        help="of teacher and students; default: 2e-4",
    )
    parser.add_argument(
        "--seeds", type=positive_integer, metavar="N", help="trainings of each ablation; default: as it says"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_arguments(parser)
    parser.set_defaults(function=ablate_command)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def ablate_command(options: argparse.Namespace) -> int:
    """Run `tokenuq ablate`."""
    from tokenuq_pipeline.commands.ablate_entries import as_yaml, entries_of, save, unsaved

    # A flag given twice and a flag with two names mean the same.
    options.ablation = [name for names in options.ablation or [ABLATIONS] for name in names]
    config = configuration()
    entries, folder = entries_of(options, config), _folder()
    study = next(iter(entries["studies"]))
    new = unsaved(entries, config, folder)
    texts = as_yaml(entries)
    for name, text in texts.items() if not options.json else ():
        print(escaped(redacted(f"# {folder / name}\n{text}")))
    if not options.yes and (options.json or not sys.stdin.isatty()):
        why = "--json asks nothing" if options.json else "there is no terminal to ask on"
        raise InputError(f"{why}; add --yes to write these entries and run the study")
    before = os.environ.get("TOKENUQ_CONFIG")
    os.environ["TOKENUQ_CONFIG"] = str(folder)
    saved = _texts(folder)
    save(new, folder)
    try:
        # The configuration with the new entries is checked here, and the data are looked at.
        code, planned = _command(plan, options, "plan", "--study", study)
        if code or not (options.yes or _agreed()):
            raise _Refused(code)
    except BaseException as error:
        _restore(folder, saved)
        if before is None:
            os.environ.pop("TOKENUQ_CONFIG")
        if isinstance(error, _Refused):
            return error.code
        raise
    if before is None and not options.json:
        print(f"Other commands know the study with: export TOKENUQ_CONFIG={shlex.quote(str(folder))}\n", flush=True)
    code, made = _command(run, options, "run", "--study", study, *(["--plain"] if options.plain else []))
    if options.json:
        print_json({"study": study, "configuration": folder, "entries": texts, "plan": planned, "run": made})
    return code


class _Refused(Exception):
    """The plan failed, or the user does not want it."""

    def __init__(self, code: int):
        super().__init__()
        self.code = code


def _folder() -> Path:
    return Path(os.environ.get("TOKENUQ_CONFIG") or FOLDER).expanduser().absolute()


def _texts(folder: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}


def _restore(folder: Path, texts: dict[Path, str]) -> None:
    """Put back what the folder's files held, and remove new ones."""
    for path in folder.glob("*.yaml"):
        if path not in texts:
            path.unlink()
        elif path.read_text(encoding="utf-8") != texts[path]:
            with atomic_write(path) as file:
                file.write(texts[path].encode())
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _agreed() -> bool:
    try:
        return input("\nRun it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _command(module, options: argparse.Namespace, *arguments: str) -> tuple[int, Any]:
    """Run another command as if its arguments had been typed; with `--json`, return its value and print nothing."""
    parser = argparse.ArgumentParser(prog="tokenuq")
    module.add_parser(parser.add_subparsers())
    given = parser.parse_args([*arguments, *(["--json"] if options.json else [])])
    if not options.json:
        return given.function(given), None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = given.function(given)
    return code, json.loads(printed.getvalue())
