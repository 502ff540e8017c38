"""Measuring a model whose weights two processes share: the tables and answers of one process with the model."""

import json
import os
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.support.ranks import run_ranks
from tests.support.tiny_models import examples, tiny_architecture
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml import process_group
from tokenuq_ml.config import LoraSpec, UncertaintySpec
from tokenuq_ml.errors import InputError, NonFiniteError
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate
from tokenuq_ml.models.adapters import add_adapter, put_adapter_weights, save_adapter, use_adapter
from tokenuq_ml.models.forward import head_of
from tokenuq_ml.models.sharding import is_sharded, load_sharded
from tokenuq_ml.scoring.bald_reference import float64_uncertainty
from tokenuq_ml.scoring.mc_dropout import token_uncertainty
from tokenuq_ml.scoring.token_losses import scored_batches
from tokenuq_ml.stages.adapted_model import AdaptedModel

NAME = "teacher"
QUICK = ("mistral",)
"""The head is a layer of its own, which FSDP makes a class of its own of."""
OTHERS = ("llama", "gemma2", "gemma3_text", "mixtral", "phi3", "mamba", "modernbert_decoder")
"""The table of embeddings as head, a soft cap, windows, experts, joint projections, a recurrent state, logits of the
model's own forward pass."""
NOT_BY_LAYER = "gpt2"
SAMPLED = (UncertaintySpec(samples=3, dropout=0.2), UncertaintySpec(samples=2, dropout=0.2, mask="position"))
PROMPTS = [list(range(3, 3 + length)) for length in (4, 9, 5, 12, 3)]
"""Batches of two, so that the last round is one batch for two processes; answers end at different lengths."""


def write_model(folder: Path, kind: str) -> None:
    """Write a base model, and an adapter that has been trained."""
    model = tiny_architecture(kind)
    # Answers end after one token, after a few, or not at all.
    model.generation_config.eos_token_id = list(range(0, 96, 5))
    model.save_pretrained(folder / kind)
    adapted = add_adapter(model, LoraSpec(rank=4, alpha=8, dropout=0.1), 0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    save_adapter(adapted, folder / kind / "adapter")


def measure(folder: Path, kind: str, out: Path) -> None:
    """Write what is measured of a model, as one of the processes that the environment names."""
    out.mkdir(parents=True)
    sharding = "fsdp" if process_group.world_size() > 1 else "none"
    stored = AdaptedModel(folder / kind, folder / kind / "adapter", NAME, sharding=sharding)
    model, numerics = stored.for_bald()
    # An odd number of batches: one process has none in the last round.
    rows = examples(11) + examples(6, split="test")
    tables = {"losses": scored(model, rows, numerics)}
    with use_adapter(model, None):
        tables["base_losses"] = scored(model, rows, numerics)
    # As for a snapshot. PyTorch frees gathered weights when a state dict is loaded.
    put_adapter_weights(model, NAME, folder / kind / "adapter")
    for spec in SAMPLED:
        tables[f"bald-{spec.mask}"] = token_uncertainty(model, rows, spec, numerics, max_tokens=64)
        tables[f"float64-{spec.mask}"] = float64_uncertainty(model, rows[:5], spec)
    for name, table in tables.items():
        table.write_parquet(out / f"{name}.parquet")
    weights = [getattr(weight.data, "to_local", lambda one=weight: one)() for weight in model.parameters()]
    found = {
        "sharded": is_sharded(model),
        "weights": sum(weight.numel() for weight in weights),
        "head": type(head_of(model)).__name__,
        "answers": generate(model, tiny_tokenizer(), PROMPTS, GreedyDecoding(9, 2)),
    }
    (out / "found.json").write_text(json.dumps(found))


def scored(model, rows, numerics) -> pl.DataFrame:
    return pl.concat(
        [
            batch.rows.with_columns(likeliest=batch.alternatives["probability"].mean())
            for batch in scored_batches(model, rows, numerics, max_tokens=64, alternatives=2)
        ]
    )


def refusals(folder: Path, out: Path) -> None:
    """Write the sentences about models that cannot be sharded, and about weights that are not finite."""
    with pytest.raises(InputError) as refused:
        load_sharded(folder / NOT_BY_LAYER, "float32", process_group.world_size())
    stored = AdaptedModel(folder / QUICK[0], folder / QUICK[0] / "adapter", NAME, sharding="fsdp")
    model, numerics = stored.at("float32")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError) as found:
        scored(model, examples(2), numerics)
    (out / "said.json").write_text(json.dumps([str(refused.value), str(found.value)]))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Return a function that measures models in one process and in two, and returns the folders of one of them."""
    folder = tmp_path_factory.mktemp("sharded")

    def folders(kind: str, kinds: tuple[str, ...]) -> tuple[Path, list[Path]]:
        if not (folder / "1" / kind).exists():
            for each in kinds:
                write_model(folder, each)
                measure(folder, each, folder / "1" / each)
            write_model(folder, NOT_BY_LAYER)
            run_ranks(__file__, folder, *kinds)
        return folder / "1" / kind, [folder / f"2-{rank}" / kind for rank in range(2)]

    return folders


def check(one: Path, ranks: list[Path]) -> None:
    whole, *parts = (json.loads((folder / "found.json").read_text()) for folder in (one, *ranks))
    assert not whole["sharded"] and all(part["sharded"] for part in parts)
    # The adapter, and the gathered output layer, are complete on both.
    assert all(part["weights"] < 0.9 * whole["weights"] for part in parts)
    tables = sorted(path.name for path in one.glob("*.parquet"))
    assert len(tables) == 6
    for part, folder in zip(parts, ranks, strict=True):
        assert (part["head"], part["answers"]) == (whole["head"], whole["answers"])
        for table in tables:
            assert pl.read_parquet(folder / table).equals(pl.read_parquet(one / table)), (folder, table)
    assert len({len(answer) for answer in whole["answers"]}) > 1


@pytest.mark.heavy
@pytest.mark.parametrize("kind", QUICK)
def test_two_processes_that_share_the_weights_measure_what_one_measures(kind, measured):
    check(*measured(kind, QUICK))


@pytest.mark.heavy
@pytest.mark.parametrize("kind", OTHERS)
def test_so_do_other_architectures(kind, measured):
    check(*measured(kind, OTHERS))


@pytest.mark.heavy
def test_a_model_is_refused_whose_layers_transformers_does_not_shard(measured):
    _, ranks = measured(QUICK[0], QUICK)
    for rank in ranks:
        refused, not_finite = json.loads((rank.parent / "said.json").read_text())
        assert "no plan to shard the layers of GPT2LMHeadModel" in refused and "leave `sharding` out" in refused
        assert "is nan" in not_finite and "is not looked for in a sharded model" in not_finite


if __name__ == "__main__":
    process_group.start()
    process_group.join()
    folder, *kinds = sys.argv[1:]
    for kind in kinds:
        measure(Path(folder), kind, Path(folder, f"2-{process_group.rank()}", kind))
    refusals(Path(folder), Path(folder, f"2-{process_group.rank()}")) if QUICK[0] in kinds else None
    # Without the teardown of the group, which waits for the other process.
    os._exit(0)
