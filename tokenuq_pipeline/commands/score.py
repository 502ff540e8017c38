"""`tokenuq score`: losses, entropies and BALD of any texts under any model, without a study.

The program `tokenuq_ml/stages/score_given.py` reads, scores and prints, in a child process, since it loads torch.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenuq_ml.errors import InputError
from tokenuq_ml.stages.thread_waits import thread_waits
from tokenuq_pipeline.commands import INTERRUPTED
from tokenuq_pipeline.commands.common import configuration, positive_integer
from tokenuq_pipeline.commands.json_output import add_json
from tokenuq_pipeline.commands.query import require_writable
from tokenuq_pipeline.runtime.paths import store_home

if TYPE_CHECKING:
    from tokenuq_ml.config.load import Config

STDIN = "-"
FORMATS = (
    "messages",
    "sharegpt",
    "prompt_completion",
    "alpaca",
    "dolly",
    "gsm8k",
    "raw_text",
)
"""Formats of rows that have an answer or a text; a test compares them with those that can be guessed."""
SUFFIXES = (".parquet", ".csv", ".jsonl")


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "score",
        help="measure loss, entropy and BALD of any texts under any model, without a study",
        description="Scores texts or conversations under a model: the loss, entropy and rank of each token, and BALD "
        "with --bald. Prints a summary; --output writes the token table, --html a page with the coloured texts.",
    )
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="a dataset in datasets.yaml, a file, a folder, an address, an id on the hub, or - for standard input",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="a model in models.yaml, a folder in Hugging Face's format, a GGUF file, or an id on the hub",
    )
    parser.add_argument(
        "--adapter",
        metavar="ADAPTER",
        help="a folder that PEFT wrote, an id on the hub, STUDY for its teacher, or STUDY/ABLATION for a student",
    )
    add_data_format(parser)
    parser.add_argument("--split", metavar="SPLIT", help="only this split of the folder or of the hub's dataset")
    parser.add_argument(
        "--rows",
        "--limit",
        dest="limit",
        type=positive_integer,
        metavar="N",
        help="only the first N rows of each source",
    )
    parser.add_argument(
        "--bald",
        type=_samples,
        metavar="K",
        help="also measure BALD by K passes with dropout over the adapter's input features",
    )
    parser.add_argument("--dropout", type=float, metavar="P", help="with --bald: the rate; default: 0.1")
    parser.add_argument(
        "--max-length", type=positive_integer, metavar="N", help="tokens after which a text is cut; default: 4096"
    )
    parser.add_argument(
        "--precision", choices=("auto", "float32", "bfloat16"), default="auto", help="of the losses; default: auto"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"write the token table: {', '.join(SUFFIXES)}")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained page with the coloured texts")
    parser.add_argument(
        "--top", type=positive_integer, default=10, metavar="N", help="tokens that the summary lists; default: 10"
    )
    add_json(parser, "print the summary as JSON")
    parser.set_defaults(function=score_command)


def add_data_format(parser: argparse.ArgumentParser) -> None:
    """Add the option that says what rows look like; `--format` is its older name."""
    parser.add_argument(
        "--data-format",
        "--format",
        dest="format",
        choices=FORMATS,
        help="what the rows look like; default: as the columns of the first row say",
    )


def _samples(text: str) -> int:
    if positive_integer(text) < 2:
        raise argparse.ArgumentTypeError("BALD needs at least 2 passes")
    return int(text)


def score_command(options: argparse.Namespace) -> int:
    """Run `tokenuq score`."""
    _check(options)
    config = configuration()
    with tempfile.TemporaryDirectory(prefix="tokenuq-score-") as folder:
        request = {
            "model": {**_model(config, options.model), **_adapter(config, options), "precision": options.precision},
            "sources": [_source(config, given, options, Path(folder)) for given in options.data],
            "uncertainty": None if options.bald is None else _uncertainty(options),
            "max_length": options.max_length,
            "limit": options.limit,
            "output": options.output and str(options.output),
            "html": options.html and str(options.html),
            "as_json": options.json,
            "top": options.top,
        }
        try:
            return run_program(request)
        except KeyboardInterrupt:
            # The program got the signal too, and has said so.
            return INTERRUPTED


def run_program(request: dict[str, Any]) -> int:
    """Run the program that scores, and return its exit code.

    It prints to the terminal itself, and stops by the signal that this process gets too.
    """
    child = subprocess.run(
        [sys.executable, "-m", "tokenuq_ml.stages.score_given"],
        input=json.dumps(request),
        text=True,
        env={**os.environ, **thread_waits(os.environ), "TOKENIZERS_PARALLELISM": "false"},
    )
    return child.returncode


def _check(options: argparse.Namespace) -> None:
    """Reject options that do not go together, before anything is loaded.

    Raises:
        InputError: in one sentence.
    """
    if options.bald is not None and options.adapter is None:
        raise InputError(
            "--bald needs --adapter: BALD is the uncertainty of an adapter's weights, sampled by dropout of its input "
            "features, and a model without an adapter drops nothing"
        )
    if options.dropout is not None and options.bald is None:
        raise InputError("--dropout is the rate of the passes of --bald K; add it")
    if options.data.count(STDIN) > 1:
        raise InputError(f"{STDIN} is standard input, which can be read once; name it once")
    if options.output and options.output.suffix.lower() not in SUFFIXES:
        raise InputError(f"--output {options.output}: name a file that ends in {', '.join(SUFFIXES)}")
    home = store_home()
    for flag, path in (("--output", options.output), ("--html", options.html)):
        if path is None:
            continue
        if not path.absolute().parent.is_dir():
            raise InputError(f"{flag} {path}: there is no folder {path.absolute().parent}")
        require_writable(path, home, flag)


def _uncertainty(options: argparse.Namespace) -> dict[str, Any]:
    from pydantic import ValidationError

    from tokenuq_ml.config import UncertaintySpec

    given = {"samples": options.bald, **({} if options.dropout is None else {"dropout": options.dropout})}
    try:
        return UncertaintySpec(**given).dropout_fields()
    except ValidationError as error:
        raise InputError(f"--dropout {options.dropout}: {error.errors()[0]['msg']}") from None


def _model(config: "Config", given: str) -> dict[str, Any]:
    """Return the folder of a model in the store, or the entry of another one.

    Raises:
        InputError: there is no such model, or it is damaged.
    """
    from tokenuq_ml.config.given import model_spec
    from tokenuq_pipeline.runtime.bucket_store import fetch, open_store
    from tokenuq_pipeline.runtime.repair import require_undamaged

    spec = config.models.get(given)
    if spec is None:
        return {"name": given, "spec": model_spec(given).fields()}
    store = open_store()
    if store.is_complete(f"models/{given}"):
        require_undamaged(store, f"models/{given}")
        fetch(store, f"models/{given}", lambda path: True)
        return {"name": given, "folder": str(store.path(f"models/{given}"))}
    if spec.source == "pretrain":
        raise InputError(f"models/{given}: is pre-trained by its asset, which was never made; run a study that uses it")
    return {"name": given, "spec": spec.fields()}


def _adapter(config: "Config", options: argparse.Namespace) -> dict[str, Any]:
    """Return the adapter: a folder, one of the store with the quantization of its base, or an id on the hub.

    Raises:
        InputError: the store has no such adapter, or the study is of another model.
    """
    given = options.adapter
    if given is None:
        return {}
    if Path(given).expanduser().is_dir():
        return {"adapter": str(Path(given).expanduser()), "adapter_name": given}
    study, _, ablation = given.partition("/")
    if study not in config.studies:
        return {"adapter": given, "adapter_name": given}
    from tokenuq_pipeline.runtime.bucket_store import fetch, open_store
    from tokenuq_pipeline.runtime.repair import require_undamaged
    from tokenuq_pipeline.runtime.store_layout import places_of

    if (model := config.studies[study].model) != options.model:
        raise InputError(f"--adapter {given}: was trained on the model {model}; set --model {model}")
    store, asset = open_store(), f"{study}/{ablation}/student" if ablation else f"{study}/baseline_teacher"
    if not store.is_complete(asset):
        raise InputError(f"--adapter {given}: {asset} was never made; run `tokenuq run --study {study}`")
    require_undamaged(store, asset)
    fetch(store, asset, lambda path: True)
    quantization = config.studies[study].quantization
    if quantization is not None and not store.is_complete(f"models/{model}"):
        raise InputError(
            f"--adapter {given}: was trained on {model} in {quantization}, and models/{model} is not in the store; run "
            f"`tokenuq run --study {study}`"
        )
    place = str(store.path(places_of(asset)["adapter"]))
    return {"adapter": place, "adapter_name": given, "quantization": quantization}


def _source(config: "Config", given: str, options: argparse.Namespace, folder: Path) -> tuple[str, dict[str, Any]]:
    """Return how the user named a source, and the keys of its entry.

    Raises:
        InputError: there is no such source.
    """
    from tokenuq_ml.config.given import dataset_keys, name_of

    extra = {"format": options.format} if options.format else {}
    if given == STDIN:
        path = _saved_stdin(folder)
        return "standard input", {"path": str(path), "name": "stdin", "sizes": "all", "duplicates": "keep", **extra}
    entry = config.datasets.get(given)
    if entry is not None:
        if options.format or options.split:
            raise InputError(
                f"{given}: is an entry of datasets.yaml, which says its format and splits; remove the option"
            )
        return given, entry.fields()
    sizes: Any = {"test": 1.0} if options.split else "all"
    return given, {**dataset_keys(given, options.split), "name": name_of(given), "sizes": sizes, **extra}


def _saved_stdin(folder: Path) -> Path:
    """Return a file with what standard input holds: rows of JSON, or text.

    Raises:
        InputError: it is empty.
    """
    content = sys.stdin.buffer.read()
    if not content.strip():
        raise InputError("standard input is empty; pipe text or rows of JSON into the command")
    is_json = content.lstrip()[:1] in (b"{", b"[")
    path = folder / ("stdin.jsonl" if is_json else "stdin.txt")
    path.write_bytes(content)
    return path
