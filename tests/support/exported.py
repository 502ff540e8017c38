"""What an export reads, without a study: a base model, an adapter, tokens of held-out texts, the stage's request."""

from pathlib import Path

import polars as pl
import torch
import yaml
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tests.support.model_folders import folder_model
from tests.support.reporter import RecordingReporter
from tests.support.tiny_models import tiny_model
from tests.support.tiny_study import CONFIG, STUDY
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import LoraSpec
from tokenuq_ml.config.export import ExportSpec
from tokenuq_ml.config.load import Config, load_config
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models.adapters import add_adapter, save_adapter
from tokenuq_ml.stages import export_model
from tokenuq_ml.stages.request import AssetRequest, RecordedInput, RecordedOrigin, StageRequest
from tokenuq_ml.stages.versions import code_version, export_fields
from tokenuq_ml.tables.parquet import write_table

TEXTS = [
    "<|im_start|>user\nHow many are 1 and 12?<|im_end|>\n<|im_start|>assistant\nThe total is 13.\n#### 13<|im_end|>\n",
    "<|im_start|>user\nSay two.<|im_end|>\n<|im_start|>assistant\nShe sells 5 of the apples now.<|im_end|>\n",
]


def held_out(tokenizer: PreTrainedTokenizerBase | None = None) -> list[TokenizedExample]:
    """Two texts whose answers are trained."""
    tokenizer = tokenizer or tiny_tokenizer()
    found = []
    for number, text in enumerate(TEXTS):
        prompt = text.partition("assistant\n")[0] + "assistant\n"
        count = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        mask = [index >= count for index in range(len(ids))]
        found.append(TokenizedExample(f"toy/{number}", "sums", "test", ids, mask))
    return found


def trained_adapter(base, folder: Path, dora: bool = False, scale: float = 0.2) -> Path:
    """Save an adapter of a base model as training leaves it: B, and DoRA's magnitudes, are not what they were."""
    model = add_adapter(base, LoraSpec(rank=4, alpha=8, dropout=0.1), 0, use_dora=dora)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=scale)
        if "magnitude" in name:
            parameter.data.mul_(1.1)
    save_adapter(model, folder)
    return folder


def write_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Write the table `tokenized_dataset` with the held-out texts."""
    rows = [
        {
            "example_id": one.example_id,
            "dataset": one.dataset,
            "split": one.split,
            "input_ids": list(one.input_ids),
            "response_mask": list(one.response_mask),
        }
        for one in held_out(tokenizer)
    ]
    schema = {"input_ids": pl.List(pl.Int32), "response_mask": pl.List(pl.Boolean)}
    write_table(
        pl.DataFrame(rows, schema_overrides=schema), "tokenized_dataset", folder, spec_hash="s", code_version="1"
    )
    return folder


def written_config(folder: Path, **changes) -> Config:
    """Write the configuration of the tiny study with changes of its study into a folder, and load it."""
    (folder / "llama").mkdir(parents=True, exist_ok=True)
    for name in ("chat", "checks", "sums"):
        (folder / f"{name}.jsonl").write_text("{}\n")
    entries = {**CONFIG, "studies": {STUDY: CONFIG["studies"][STUDY] | changes}}
    for name, content in entries.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return load_config(folder)


class Exporting:
    """The inputs of an export in a folder.

    Args:
        folder: an empty folder.
        kind: architecture of the base model.
        **changes: of the study.
    """

    def __init__(self, folder: Path, kind: str = "llama", dora: bool = False, scale: float = 0.2, **changes):
        self.folder = folder
        self.base, self.tokens = folder / "base", write_tokens(folder / "tokens")
        folder_model(self.base, kind)
        GenerationConfig(eos_token_id=tiny_tokenizer().eos_token_id).save_pretrained(self.base)
        vocabulary = len(tiny_tokenizer())
        self.weights = trained_adapter(tiny_model(kind, vocab=vocabulary), folder / "adapter", dora, scale)
        self.config = written_config(folder / "config", **changes)

    def request(self, out: Path, **spec) -> StageRequest:
        """Return the request of an export of `paper_top25`."""
        out.mkdir(parents=True)
        export = ExportSpec(**{"name": "e", "study": STUDY, "ablation": "paper_top25", **spec})
        fields = export_fields(self.config, export)
        provenance = {"made_at": "2026-01-02T03:04:05+00:00", "git_commit": "abc", "packages": {"torch": "2"}}
        origin = RecordedOrigin(data_version="d1", code_version="3-x", metrics={"steps": 7}, provenance=provenance)
        return StageRequest(
            entrypoint="export_model",
            assets={
                "export": AssetRequest(
                    fields=fields, code_version=code_version("export", fields), outputs={"model": str(out)}
                )
            },
            inputs={"model": str(self.base), "weights": str(self.weights), "tokenized_dataset": str(self.tokens)},
            recorded={"weights": RecordedInput(asset=f"{STUDY}/paper_top25/student", files={}, origin=origin)},
            work_dir=str(self.folder),
        )

    def run(self, out: Path, **spec):
        """Run the stage in this process; return its reporter and its result."""
        reporter = RecordingReporter()
        export_model.run(self.request(out, **spec), reporter)
        (result,) = reporter.results
        return reporter, result
