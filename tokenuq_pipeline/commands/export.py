"""`tokenuq export`: a trained model for other programs.

The program `tokenuq_ml/stages/export_model.py` merges, writes and compares, in a child process, since it loads torch.
What it has written takes its name once the comparison has passed.
"""

import argparse
import contextlib
import errno
import os
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenuq_ml.control_characters import escaped
from tokenuq_ml.errors import InputError
from tokenuq_pipeline.commands.common import configuration, known_study
from tokenuq_pipeline.commands.json_output import add_json, print_error, print_json
from tokenuq_pipeline.commands.query import require_writable
from tokenuq_pipeline.commands.units import disk
from tokenuq_pipeline.runtime.paths import store_home

if TYPE_CHECKING:
    from tokenuq_ml.config.export import ExportSpec
    from tokenuq_ml.config.load import Config
    from tokenuq_pipeline.commands.export_source import Source
    from tokenuq_pipeline.runtime.store import Store

DTYPES = ("auto", "float32", "bfloat16", "float16")
NAME = "given"
"""Of the export in the request; an asset has the name of its entry."""


def add_parser(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "export",
        help="write a trained model as a folder or GGUF file, publish it, or serve it with vLLM",
        description="Merges the adapter of a student or of the teacher into its base model, and writes the result for "
        "other programs, with tokenizer, chat template, generation config and a model card. Nothing is written unless "
        "the result, loaded again, gives the logits of base model plus adapter on 8 held-out examples.",
    )
    parser.add_argument(
        "model", metavar="STUDY/ABLATION", help="an ablation of a study, or STUDY/baseline_teacher for its teacher"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--merge", type=Path, metavar="DIR", help="a folder that transformers and vLLM load")
    where.add_argument("--hub", metavar="REPO", help="a repository on the Hugging Face Hub; private, if it is new")
    where.add_argument("--gguf", type=Path, metavar="FILE", help="a GGUF file for llama.cpp")
    where.add_argument(
        "--vllm", action="store_true", help="write nothing: print the command with which vLLM serves the adapter"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; default: auto, as the base model is stored")
    parser.add_argument("--public", action="store_true", help="with --hub: let everyone see a new repository")
    parser.add_argument(
        "--stale", action="store_true", help="export a model although an input of its training has changed since"
    )
    add_json(parser, "print JSON: the target, and how its logits differ from the trained model's")
    parser.set_defaults(function=export_command)


def export_command(options: argparse.Namespace) -> int:
    """Run `tokenuq export`."""
    _check(options)
    from tokenuq_pipeline.commands.export_source import find_source
    from tokenuq_pipeline.runtime.bucket_store import open_store

    config, store = configuration(), open_store()
    source = find_source(config, store, _spec(config, options), options.stale)
    for warning in source.warnings:
        print(f"warning: {escaped(warning)}", file=sys.stderr)
    if options.vllm:
        return _serve(options, source)
    if options.hub:
        from tokenuq_ml.export.hub import check_repo

        check_repo(options.hub, options.public)
    from tokenuq_pipeline.commands.export_process import run_program
    from tokenuq_pipeline.commands.query_process import ended_by_signals

    with ended_by_signals(), _staged(options, store) as folder:
        code, result = run_program(source, folder)
        if result is None:
            if options.json:
                print_error("the export failed, as standard error says", code)
            return code
        target = _place(options, source, folder)
    _print(options, source, target, result)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Reject options that do not go together and targets that exist, before anything is loaded.

    Raises:
        InputError: in one sentence.
    """
    if options.public and not options.hub:
        raise InputError("--public goes with --hub REPO")
    if options.vllm and options.dtype:
        raise InputError("--dtype: --vllm writes no weights; give it to `vllm serve`")
    home = store_home()
    if options.merge is not None:
        path = options.merge.expanduser()
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise InputError(f"--merge {path}: is not a folder; name a new folder")
        if path.is_dir() and any(path.iterdir()):
            raise InputError(f"--merge {path}: the folder is not empty; name a new folder, or empty this one")
        if path.is_mount():
            raise InputError(f"--merge {path}: is a mount point, which cannot be replaced; name a new folder in it")
        _require_parent("--merge", path)
        if home.resolve() in (path.absolute().resolve(), *path.absolute().resolve().parents):
            raise InputError(f"--merge {path}: is in the store, which only the pipeline writes to; name another folder")
    if options.gguf is not None:
        path = options.gguf.expanduser()
        if path.suffix != ".gguf":
            raise InputError(f"--gguf {path}: name a file that ends in .gguf")
        if path.exists():
            raise InputError(f"--gguf {path}: the file exists; name a new one, or delete it")
        _require_parent("--gguf", path)
        require_writable(path, home, "--gguf")


def _require_parent(flag: str, path: Path) -> None:
    parent = path.absolute().parent
    if not parent.is_dir():
        raise InputError(f"{flag} {path}: there is no folder {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag} {path}: {parent} may not be written to; name another folder")


def _spec(config: "Config", options: argparse.Namespace) -> "ExportSpec":
    """Return what is exported.

    Raises:
        InputError: there is no such study or ablation.
    """
    from tokenuq_ml.config.export import ExportSpec, problem_with

    study, slash, ablation = options.model.partition("/")
    if not slash or not ablation:
        raise InputError(
            f"{options.model!r}: name an ablation as STUDY/ABLATION, or the study's teacher as STUDY/baseline_teacher"
        )
    spec = ExportSpec(
        name=NAME,
        study=known_study(config, study),
        ablation=ablation.removesuffix("/student"),
        kind="gguf" if options.gguf else "merged",
        dtype=options.dtype or "auto",
    )
    if problem := problem_with(spec, config.studies):
        raise InputError(f"{options.model}: {problem.partition(': ')[2]}")
    return spec


@contextlib.contextmanager
def _staged(options: argparse.Namespace, store: "Store") -> Iterator[Path]:
    """Yield an empty folder next to the target, or in the store; it is deleted afterwards, unless it was moved."""
    if options.hub:
        with store.staging() as folder:
            (folder / "model").mkdir()
            yield folder / "model"
        return
    target = (options.merge or options.gguf).expanduser().absolute()
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.exporting")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(options: argparse.Namespace, source: "Source", folder: Path) -> str:
    """Give what was written its name, or publish it; return where it is."""
    if options.hub:
        from tokenuq_ml.export.hub import publish

        return publish(folder, options.hub, options.public, f"Export of {source.name} by tokenuq")
    from tokenuq_ml.atomic_files import fsync, fsync_tree

    target = (options.merge or options.gguf).expanduser().absolute()
    fsync_tree(folder)
    if options.merge:
        try:
            # Takes the place of an empty folder.
            os.rename(folder, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise InputError(f"--merge {target}: something was put there meanwhile; name a new folder") from None
    else:
        (written,) = folder.glob("*.gguf")
        try:
            # Fails if the file was made meanwhile.
            os.link(written, target)
        except FileExistsError:
            raise InputError(f"--gguf {target}: the file was made meanwhile; name a new one") from None
        except OSError:
            # The file system has no links.
            os.rename(written, target)
    fsync(target.parent)
    return str(target)


def _print(options: argparse.Namespace, source: "Source", target: str, result: dict[str, Any]) -> None:
    metrics = result["metrics"]
    if options.json:
        figures = ("dtype", "bytes", "max_abs_difference", "relative_difference", "kl", "change_by_training", "notes")
        found = {key: metrics[key] for key in figures if key in metrics}
        print_json({"model": source.name, "target": target, "kind": metrics["kind"], **found})
        return
    print(f"{source.name}: {metrics['dtype']}, {disk(metrics['bytes'])}, in {escaped(target)}")
    print(f"equals base model plus adapter on {result['checks']['logits_match']['description']}")
    if options.merge:
        print(f"load it with AutoModelForCausalLM.from_pretrained({target!r}), or `vllm serve {shlex.quote(target)}`")


def _serve(options: argparse.Namespace, source: "Source") -> int:
    """Print the command with which vLLM serves the model."""
    from tokenuq_ml.export.vllm_serving import serving

    found = serving(source.base, source.weights, source.name, source.quantization)
    if options.json:
        print_json({"model": source.name, "arguments": list(found.arguments), "served_as": found.model})
    else:
        print(shlex.join(found.arguments))
    if not found.installed:
        print("vllm is not installed here: the adapter was checked, and nothing was served", file=sys.stderr)
    return 0
