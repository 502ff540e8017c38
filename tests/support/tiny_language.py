"""A tiny synthetic language: entries of its datasets, and the stages that make its documents and its model."""

from pathlib import Path
from typing import Any

from tests.support.reporter import RecordingReporter
from tokenuq_ml.config import DatasetSpec, ModelSpec
from tokenuq_ml.stages import load_dataset
from tokenuq_ml.stages.request import AssetRequest, StageRequest

LANGUAGE, POST, MODEL = "talk", "talk_post", "talk_llama"
GRAMMAR = {"facts": 12, "values": 6, "choices": 5, "choice_entropy": 1.2, "items": 4}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def language_spec(train: int = 40, ood: int = 6, **grammar: Any) -> DatasetSpec:
    """Return the entry that defines the language."""
    return DatasetSpec(
        name=LANGUAGE,
        format="synthetic_language",
        grammar={**GRAMMAR, **grammar},
        sizes={"train": train, "ood": ood},
    )


def post_spec(train: int = 12, validation: int = 4, test: int = 4) -> DatasetSpec:
    """Return the entry of the world that is post-trained."""
    return DatasetSpec(
        name=POST,
        format="synthetic_language",
        language=LANGUAGE,
        world="post",
        sizes={"train": train, "validation": validation, "test": test},
    )


def model_spec(steps: int = 6, **pretraining: Any) -> ModelSpec:
    """Return the entry of a model that is trained on the language."""
    settings = {"steps": steps, "batch_size": 8, **pretraining}
    return ModelSpec(name=MODEL, source="pretrain", language=LANGUAGE, config=LLAMA, pretraining=settings)


def write_documents(folder: Path, *specs: DatasetSpec) -> dict[str, str]:
    """Make datasets by their stage; return input name -> the folder of its examples."""
    made: dict[str, str] = {}
    for spec in specs:
        outputs = {name: str(folder / name / spec.name) for name in ("examples", "rejected_rows")}
        asset = AssetRequest(fields=spec.fields(), code_version="1-x", outputs=outputs)
        request = StageRequest(
            entrypoint="load_dataset", assets={"datasets": asset}, inputs=dict(made), work_dir=str(folder / "work")
        )
        load_dataset.run(request, RecordingReporter())
        made[f"examples/{spec.name}"] = outputs["examples"]
    return made
