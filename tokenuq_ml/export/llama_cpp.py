"""llama.cpp's own converter to GGUF, where it is installed.

Does not import torch.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tokenuq_ml.errors import InputError

VARIABLE = "LLAMA_CPP"
"""Names a checkout of llama.cpp, or the script itself."""
SCRIPT = "convert_hf_to_gguf.py"
OUTTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def converter(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the script: of the checkout that `$LLAMA_CPP` names, or on `$PATH`; None if there is none.

    Raises:
        InputError: `$LLAMA_CPP` names neither a folder with the script nor the script.
    """
    if given := environment.get(VARIABLE):
        path = Path(given).expanduser()
        path = path / SCRIPT if path.is_dir() else path
        if path.name != SCRIPT or not path.is_file():
            raise InputError(f"{VARIABLE}: {given} is no checkout of llama.cpp with {SCRIPT}; correct or unset it")
        return path
    found = shutil.which(SCRIPT, path=environment.get("PATH"))
    return Path(found) if found else None


def convert(script: Path, folder: Path, file: Path, dtype: str) -> None:
    """Write the model of a folder as a GGUF file.

    Raises:
        InputError: the converter fails; the message has its last line.
    """
    command = [sys.executable, str(script), str(folder), "--outfile", str(file), "--outtype", OUTTYPES[dtype]]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode or not file.is_file():
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"]
        wrote = "" if done.returncode else " and wrote no file"
        raise InputError(
            f"{script} ended with exit code {done.returncode}{wrote}: {lines[-1][:300]}; install what it lacks, or "
            f"unset {VARIABLE} and take it off PATH to write the file with the package gguf"
        )
