"""A stage that lets secrets out by every way it has: prints, logs, warnings, messages, metrics, errors, children."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

from tests.support import fake_stage
from tokenuq_ml.config import JudgeSpec
from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.judge import Judge, JudgeUnavailable
from tokenuq_ml.redaction import hide
from tokenuq_ml.stages import runner

PACKAGE = "leaky_entrypoints"
HUB_TOKEN = "hf_" + "aBcDeFgHiJ" * 3
URL_PASSWORD = "p4ssw0rd-in-a-url"
JUDGE_KEY = "the judge's own key"
ENVIRONMENT_PASSWORD = "only-known-by-its-name"
SECRETS = (HUB_TOKEN, URL_PASSWORD, JUDGE_KEY, ENVIRONMENT_PASSWORD)
ENVIRONMENT = {"JUDGE": JUDGE_KEY, "DB_PASSWORD": ENVIRONMENT_PASSWORD}
"""The judge's variable has a name that does not say what it holds."""
TEXT = f"401 for {HUB_TOKEN}, https://me:{URL_PASSWORD}@host/v1, {{'db': '{ENVIRONMENT_PASSWORD}'}}"


def write_package(folder: Path) -> None:
    """A package with the entry points of a model and of two datasets."""
    package = folder / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("convert_model", "load_dataset"):
        (package / f"{name}.py").write_text("from tests.support import leaky_stage\n\nleaky_stage.main()\n")


def run(request, reporter) -> None:
    """Leak, ask a judge that repeats the key, and end as `$LEAK` says: well, by bad input or by a bug."""
    for stage, asset in request.assets.items():
        ending = os.environ["LEAK"]
        if ending == "well":
            ask_judge(reporter)
        else:
            hide(os.environ["JUDGE"])
        for say in (print, logging.warning, warnings.warn, reporter.info, reporter.warning):
            say(f"{TEXT} {os.environ['JUDGE']}")
        print(TEXT, file=sys.stderr)
        os.write(2, TEXT.encode() + b"\n")
        subprocess.run([sys.executable, "-c", f"print({TEXT!r})"], check=True)
        if ending == "bad input":
            raise InputError(f"rows.jsonl: row 3: {TEXT}")
        if ending == "bug":
            raise RuntimeError(f"{TEXT} {os.environ['JUDGE']}")
        result = fake_stage.make(stage, asset, request, spoil=False)
        result.metrics["note"] = f"{TEXT} {os.environ['JUDGE']}"
        reporter.done(result)


def ask_judge(reporter) -> None:
    """Ask a judge that refuses the key, of which this process knows only then that it is secret."""
    try:
        Judge(JudgeSpec(base_url=os.environ["JUDGE_URL"], model="m", api_key_env="JUDGE"))
    except JudgeUnavailable as error:
        reporter.warning(f"no judge: {error}; it got {os.environ['JUDGE']}")


def main() -> None:
    runner.main(run)
