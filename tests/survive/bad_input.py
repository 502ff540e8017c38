"""Bad input of every kind: refused in a sentence that names it, and nothing that was made is lost."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from tests.survive.study import STUDY, Calm, TrialStudy
from tests.survive.trials import Record, Trial

PART = "bad input"
WHOLE = "config.whole"
"""The folder that keeps the configuration as it was."""
RUN = ("run", "--study", STUDY)


@dataclass(frozen=True)
class BadInput:
    """One kind of bad input."""

    name: str
    alter: Callable[[Path], None]
    """Gets the folder of the configuration, which also holds the data and the model."""
    names: str
    """What the message must name."""
    command: tuple[str, ...] = RUN
    environment: dict[str, str] = field(default_factory=dict)


def study(**settings) -> Callable[[Path], None]:
    """Return what changes settings of the study."""

    def alter(folder: Path) -> None:
        entries = yaml.safe_load((folder / "studies.yaml").read_text())
        entries[STUDY] |= settings
        (folder / "studies.yaml").write_text(yaml.safe_dump(entries))

    return alter


def train(**settings) -> Callable[[Path], None]:
    """Return what changes settings of the study's training."""

    def alter(folder: Path) -> None:
        entries = yaml.safe_load((folder / "studies.yaml").read_text())
        entries[STUDY]["train"] |= settings
        (folder / "studies.yaml").write_text(yaml.safe_dump(entries))

    return alter


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    """Return what overwrites a file."""
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def add_line(name: str, content: bytes) -> Callable[[Path], None]:
    """Return what appends a line to a file."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b"\n" + content)


def replace(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Return what removes a file and makes something else in its place."""

    def alter(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return alter


def cut(name: str) -> Callable[[Path], None]:
    """Return what keeps the first half of a file."""

    def alter(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return alter


def nan_weight(folder: Path) -> None:
    """Write a NaN into the middle of the weights."""
    path = folder / "llama" / "model.safetensors"
    content = bytearray(path.read_bytes())
    middle = len(content) // 8 * 4
    content[middle : middle + 4] = b"\0\0\xc0\x7f"
    path.write_bytes(content)


def model_config(**settings) -> Callable[[Path], None]:
    """Return what changes the model's config.json."""

    def alter(folder: Path) -> None:
        path = folder / "llama" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return alter


def chat_template(text: str) -> Callable[[Path], None]:
    """Return what replaces the model's chat template."""

    def alter(folder: Path) -> None:
        path = folder / "llama" / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        settings.pop("chat_template", None)
        path.write_text(json.dumps(settings))
        (folder / "llama" / "chat_template.jinja").write_text(text)

    return alter


def twice(name: str) -> Callable[[Path], None]:
    """Return what repeats the content of a file."""
    return lambda folder: (folder / name).write_bytes(2 * (folder / name).read_bytes())


def ablations(mle: str, more: str = "") -> Callable[[Path], None]:
    """Return what writes the ablations: `mle` for the first, and more."""
    return write("ablations.yaml", f"s_mle: {mle}\ns_paper: {{select: all}}\n{more}")


def nothing(folder: Path) -> None:
    """Leave the input as it is: the command is what is wrong."""


NESTED = b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}"
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(9)
)
ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
UNANSWERED = "".join(f'{{"messages": [{{"role": "user", "content": "{number}"}}]}}\n' for number in range(40))
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
ENDLESS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + 3 * "{% endfor %}"
WRITES = "WITH x AS (COPY (SELECT 1) TO '/tmp/survive.csv') SELECT * FROM x"
BAD_INPUT = [
    BadInput("YAML with a syntax error", write("studies.yaml", "a: [1, 2\nb: }"), "studies.yaml"),
    BadInput("YAML that is a list", write("studies.yaml", "- a\n- b\n"), "studies.yaml"),
    BadInput("YAML that is not UTF-8", write("studies.yaml", b"a: \xff\xfe\n"), "studies.yaml"),
    BadInput(
        "YAML with a Python object",
        write("studies.yaml", "a: !!python/object/apply:os.system ['true']"),
        "studies.yaml",
    ),
    BadInput("YAML that grows without bound", write("studies.yaml", BOMB), "studies.yaml"),
    BadInput("a study named twice", twice("studies.yaml"), STUDY),
    BadInput("an unknown key of a study", study(learning_rat=0.1), "learning_rat"),
    BadInput("an unknown ablation", study(ablations=["s_mle", "s_papr"]), "s_papr"),
    BadInput("an unknown model", study(model="tiny_lama"), "tiny_lama"),
    BadInput("an unknown dataset", study(dataset="sum"), "sum"),
    BadInput("a negative length", study(max_length=-1), "max_length"),
    BadInput("a learning rate that is no number", train(learning_rate="fast"), "learning_rate"),
    BadInput("a learning rate that is not finite", train(learning_rate=float("nan")), "learning_rate"),
    BadInput("an adapter of rank 0", train(lora={"rank": 0}), "rank"),
    BadInput("a batch of no examples", train(batch_size=0), "batch_size"),
    BadInput("a quantile above 1", ablations("{select: {by: loss, quantile: 1.5}}"), "quantile"),
    BadInput("an unknown score", ablations("{select: {by: lost, quantile: 0.5}}"), "lost"),
    BadInput("an ablation named like a path", ablations("{select: all}", "../x: {select: all}"), "../x"),
    BadInput("a data file that is missing", lambda folder: (folder / "sums.jsonl").unlink(), "sums.jsonl"),
    BadInput("a data file that is empty", write("sums.jsonl", ""), "sums"),
    BadInput("a data file cut in a line", cut("sums.jsonl"), "sums.jsonl"),
    BadInput("a data file of random bytes", write("sums.jsonl", os.urandom(4096)), "sums.jsonl"),
    BadInput(
        "a web page in place of data", write("sums.jsonl", "<!DOCTYPE html><html><body>404</body></html>"), "sums.jsonl"
    ),
    BadInput("a Git LFS pointer in place of data", write("sums.jsonl", LFS_POINTER), "sums.jsonl"),
    BadInput("rows nested 5,000 deep", add_line("sums.jsonl", NESTED), "sums.jsonl"),
    BadInput("a row that is a list", add_line("sums.jsonl", b"[1, 2]"), "sums.jsonl"),
    BadInput("a row of NUL bytes", add_line("sums.jsonl", bytes(300)), "sums.jsonl"),
    BadInput(
        "a row that ends in control characters", add_line("sums.jsonl", b'{"messages": \x1b]0;x\x07}'), "sums.jsonl"
    ),
    BadInput("a pipe in place of data", replace("sums.jsonl", os.mkfifo), "sums"),
    BadInput("a link to itself in place of data", replace("sums.jsonl", lambda path: path.symlink_to(path)), "sums"),
    BadInput("a folder without data in place of data", replace("sums.jsonl", Path.mkdir), "sums"),
    BadInput("too few rows for the splits", write("sums.jsonl", ROW), "sums"),
    BadInput("rows without an answer", write("sums.jsonl", UNANSWERED), "sums"),
    BadInput("a model without config.json", lambda folder: (folder / "llama" / "config.json").unlink(), "llama"),
    BadInput("a model of an unknown type", model_config(model_type="lama"), "llama"),
    BadInput("weights cut in half", cut("llama/model.safetensors"), "llama"),
    BadInput("weights with a NaN", nan_weight, "llama"),
    BadInput("a tokenizer cut in half", cut("llama/tokenizer.json"), "llama"),
    BadInput("a chat template with a syntax error", chat_template("{% for m in messages %}"), "template"),
    BadInput("a chat template that never ends", chat_template(ENDLESS), "template"),
    BadInput("a chat template that reaches for Python", chat_template("{{ messages.__class__.__mro__ }}"), "template"),
    BadInput(
        "a configuration folder that is missing",
        nothing,
        "TOKENUQ_CONFIG",
        environment={"TOKENUQ_CONFIG": "/no/such/folder"},
    ),
    BadInput(
        "slots that are no number",
        nothing,
        "TOKENUQ_ACCELERATOR_SLOTS",
        environment={"TOKENUQ_ACCELERATOR_SLOTS": "many"},
    ),
    BadInput("an unknown study", nothing, "surviv", ("run", "--study", "surviv")),
    BadInput("a query that is no SELECT", nothing, "SELECT", ("query", "DROP VIEW tokens")),
    BadInput("a query that writes", nothing, "SELECT", ("query", WRITES)),
]


MODEL, DATASET = ("models/tiny_llama",), ("datasets/sums",)
MADE_FROM = {"sums": DATASET, "sums.jsonl": DATASET, "llama": MODEL, "template": (*MODEL, f"{STUDY}/tokenized_dataset")}
"""What a message names -> the assets that are made from it."""


def bad_inputs(folder: Path, whole: TrialStudy, calm: Calm, record: Record, deadline: float) -> None:
    """Make the trials that the record lacks until `deadline`."""
    if not (folder / WHOLE).exists():
        shutil.copytree(whole.config, folder / WHOLE)
    for number, bad in enumerate(BAD_INPUT[len(record.trials(PART)) :], len(record.trials(PART)) + 1):
        if time.monotonic() > deadline:
            break
        started = time.monotonic()
        study = whole.copy_to(folder / "bad_input")
        # In place: an entry of the configuration with another path is another entry.
        restore_config(folder)
        bad.alter(study.config)
        for asset in MADE_FROM.get(bad.names, ()):
            # Made already, it would not be read again.
            study.store.forget(asset)
        study.more_environment |= bad.environment
        code, printed = study.tokenuq(*bad.command, seconds=180)
        wrong = [] if code not in (0, 124) else [f"exit code {code}: {printed[-400:]}"]
        if bad.names not in printed:
            wrong.append(f"does not name {bad.names}: {printed[-400:]}")
        if "Traceback" in printed:
            wrong.append(f"a traceback: {printed[-400:]}")
        if "\x1b]" in printed:
            wrong.append("control characters of the data are printed")
        wrong += calm.wrong(study) + [f"stage {pid} is still at work" for pid in study.wait_for_orphans()]
        said = _sentence(printed, bad.names)
        record.add(Trial(PART, number, bad.name, f"“{said}”", tuple(wrong), time.monotonic() - started))
    restore_config(folder)


def restore_config(folder: Path) -> None:
    """Make the configuration again what it was before a trial altered it."""
    if (folder / WHOLE).exists():
        shutil.rmtree(folder / "config", ignore_errors=True)
        shutil.copytree(folder / WHOLE, folder / "config")


def _sentence(printed: str, names: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if names in line]
    errors = [line for line in lines if "failed" in line or "error" in line]
    return (errors or lines or [printed.strip()[-200:]])[-1][:240]
