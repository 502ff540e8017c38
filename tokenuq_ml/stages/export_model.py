"""Child process of `export/<name>`, and of `tokenuq export`: a trained model in a format that other programs load.

Nothing is written unless the written model, loaded again, gives the logits of base model plus adapter.
"""

import gc
import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tokenuq_ml.config import TEACHER_ROW, StudySpec
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.export import llama_cpp
from tokenuq_ml.export.bounds import BOUNDS, Difference, difference, require_equal, require_tokens
from tokenuq_ml.export.card import CardFacts, model_card
from tokenuq_ml.export.card_entries import with_ablation
from tokenuq_ml.export.card_figures import figures
from tokenuq_ml.export.gguf_file import read_back, write_gguf
from tokenuq_ml.export.gguf_settings import architecture_of
from tokenuq_ml.export.model_folder import check_tokenizer, loaded_logits, stored_dtype, write_folder
from tokenuq_ml.export.trained import TrainedModel, held_out_texts
from tokenuq_ml.file_hashes import sha256_of
from tokenuq_ml.models.load import load_tokenizer
from tokenuq_ml.models.numerics import resolve_numerics
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.request import AssetRequest, AssetResult, CheckOutcome, StageReporter, StageRequest
from tokenuq_ml.tensor_digest import joined_digest, tensors_digest

STAGE, OUTPUT = "export", "model"
CARD = "README.md"


@dataclass(frozen=True)
class _Expected:
    """What an exported model is compared with."""

    texts: list[TokenizedExample]
    trained: list[Tensor]
    """Logits of base model plus adapter, of each text."""
    change: Difference
    """By how much training has changed them."""

    def compare(self, found: list[Tensor], dtype: str, what: str) -> Difference:
        """Return how a model differs from the trained one.

        Raises:
            InputError: by more than the bound of its dtype.
        """
        gap = difference(self.trained, found)
        require_equal(gap, self.change, dtype, what)
        return gap


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `model` with a folder of weights, or with a GGUF file; and with the model card."""
    asset, inputs = request.assets[STAGE], {name: Path(path) for name, path in request.inputs.items()}
    spec, out = ExportSpec(**asset.fields["export"]), Path(asset.outputs[OUTPUT])
    model = TrainedModel(inputs["model"], inputs["weights"], request.base_settings)
    dtype = stored_dtype(model.base) if spec.dtype == "auto" else spec.dtype
    name, tokenizer = f"{spec.study}/{spec.ablation}", load_tokenizer(model.base)
    if spec.kind == "gguf":
        _require_convertible(model)
    texts = held_out_texts(inputs["tokenized_dataset"])
    reporter.info(f"{name}: logits of base model plus adapter on {len(texts)} held-out examples")
    trained, base = model.logits(texts)
    require_tokens(trained)
    expected = _Expected(texts, trained, difference(trained, base))
    gc.collect()
    # A GGUF file is made from a folder, which is then deleted.
    folder = out if spec.kind == "merged" else out / "merged"
    found = _write(model, tokenizer, dtype, folder, expected, reporter, name)
    files, notes = folder.name, []
    if spec.kind == "gguf":
        files = f"{spec.study}-{spec.ablation}-{dtype}.gguf"
        found, notes = _write_gguf(asset, folder, out / files, dtype, tokenizer, expected, reporter, name)
        shutil.rmtree(folder)
    for note in notes:
        reporter.warning(f"{name}: {note}")
    facts = _facts(request, asset, spec, dtype, "merged model" if spec.kind == "merged" else files, expected, found)
    (out / CARD).write_text(model_card(asset.fields, facts), encoding="utf-8")
    for path in out.iterdir():
        # safetensors writes files that their owner alone may read.
        shutil.copymode(out / CARD, path)
    reporter.info(f"{name}: equals base model plus adapter: {found.words()}")
    reporter.done(_result(asset, spec, out, dtype, expected, found, notes))


def _require_convertible(model: TrainedModel) -> None:
    """Refuse an architecture that no writer of GGUF here knows, before anything is computed."""
    from transformers import AutoConfig

    if llama_cpp.converter() is None:
        architecture_of(AutoConfig.from_pretrained(model.base))


def _write(
    model: TrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    folder: Path,
    expected: _Expected,
    reporter: StageReporter,
    name: str,
) -> Difference:
    """Write the folder that transformers loads, and compare it; return how it differs."""
    reporter.info(f"{name}: merging, and writing {dtype} weights")
    write_folder(model.merged(), model.base, tokenizer, dtype, folder)
    gc.collect()
    check_tokenizer(folder, tokenizer, expected.texts)
    found = expected.compare(loaded_logits(folder, expected.texts), dtype, name)
    gc.collect()
    return found


def _write_gguf(
    asset: AssetRequest,
    folder: Path,
    file: Path,
    dtype: str,
    tokenizer: PreTrainedTokenizerBase,
    expected: _Expected,
    reporter: StageReporter,
    name: str,
) -> tuple[Difference, list[str]]:
    """Write the GGUF file, and compare it as transformers reads it; return how it differs, and what to note."""
    script = llama_cpp.converter()
    if script is not None:
        reporter.info(f"{name}: writing {file.name} by {script}")
        llama_cpp.convert(script, folder, file, dtype)
    else:
        reporter.info(f"{name}: writing {file.name} by the package gguf")
        write_gguf(folder, file, dtype, name, asset.fields["licenses"]["model"])
    found = read_back(file, folder, tokenizer, expected.texts)
    return expected.compare(found.logits, dtype, file.name), found.notes


def _facts(
    request: StageRequest,
    asset: AssetRequest,
    spec: ExportSpec,
    dtype: str,
    files: str,
    expected: _Expected,
    found: Difference,
) -> CardFacts:
    study = StudySpec(**with_ablation(asset.fields["study"]))
    record, base = request.recorded.get("weights"), request.recorded.get("model")
    bound = BOUNDS[dtype]
    return CardFacts(
        dtype=dtype,
        equality=(
            f"The exported model was loaded again and compared with base model plus adapter on {len(expected.texts)} "
            f"held-out examples, in float32: {found.words()}. Training had changed the logits by "
            f"{expected.change.relative:.2g} of their spread. The bound for {dtype} is {bound.relative:g} of it "
            f"and KL {bound.kl:g}."
        ),
        files=files,
        figures=figures(request.inputs, TEACHER_ROW if spec.is_of_teacher else spec.ablation, study.evaluation),
        origin=record.origin.model_dump() if record is not None and record.origin is not None else {},
        commit=str(base.origin.metrics["commit"])
        if base is not None and base.origin is not None and base.origin.metrics.get("commit")
        else None,
    )


def _result(
    asset: AssetRequest,
    spec: ExportSpec,
    out: Path,
    dtype: str,
    expected: _Expected,
    found: Difference,
    notes: list[str],
) -> AssetResult:
    figures = {"max_abs_difference": found.max_abs, "relative_difference": found.relative, "kl": found.kl}
    return AssetResult(
        stage=STAGE,
        data_version=joined_digest(asset.spec_hash, *_contents(out)),
        metrics={
            "kind": spec.kind,
            "dtype": dtype,
            "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
            **figures,
            "change_by_training": expected.change.relative,
            **({"notes": "\n".join(notes)} if notes else {}),
            **{key: value for key, value in resolve_numerics("float32").fields().items() if key != "precision_reason"},
        },
        checks={
            "logits_match": CheckOutcome(
                passed=True, description=f"{len(expected.texts)} examples: {found.words()}", figures=dict(figures)
            )
        },
    )


def _contents(out: Path) -> list[str]:
    """Return a hash of each file but the card, which names the time and the machine of the training."""
    files = sorted(path for path in out.iterdir() if path.is_file() and path.name != CARD)
    return [
        f"{path.name}={tensors_digest(path) if path.suffix == '.safetensors' else sha256_of(path)}" for path in files
    ]


if __name__ == "__main__":
    runner.main(run)
