"""Batches of a stage that processes of a Ray cluster compute: the same tables, and only what was lost again."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest

from tests.support.noted_batches import stored_model
from tests.support.paths import ROOT
from tests.support.tiny_models import examples, tiny_model, tiny_peft
from tests.support.tiny_tokenizer import tiny_tokenizer
from tokenuq_ml.config import LoraSpec, UncertaintySpec
from tokenuq_ml.config.resources import StageResources
from tokenuq_ml.errors import InputError, NonFiniteError
from tokenuq_ml.evaluation.generation import GreedyDecoding, generate
from tokenuq_ml.models.adapters import add_adapter, attach_adapter, put_adapter_weights, save_adapter, use_adapter
from tokenuq_ml.models.load import load_model
from tokenuq_ml.models.output_layer import causal_lm
from tokenuq_ml.scoring.bald_reference import float64_uncertainty
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.scoring.mc_dropout import token_uncertainty, uncertainty_plan
from tokenuq_ml.scoring.teacher_change import teacher_change
from tokenuq_ml.scoring.token_losses import score_examples
from tokenuq_ml.stages.adapted_model import StoredModel
from tokenuq_ml.stages.batch_actors import _keywords, _room
from tokenuq_ml.stages.batch_work import ExampleBatches, Failure, Job, Measurer, Setting, SingleBatches, groups
from tokenuq_ml.stages.measures import AnswerMeasure, ChangeMeasure, LossMeasure, ReferenceMeasure, UncertaintyMeasure
from tokenuq_ml.stages.ray_connection import reserved_by_process
from tokenuq_ml.tables.schemas import TOKEN_KEY

pytestmark = pytest.mark.slow

SPEC = UncertaintySpec(samples=3, dropout=0.2)


def measured(measurer, job, setting):
    """The results of a job, as they come back from a process."""
    rows = [measurer(row) for row in groups(job, setting)]
    assert [row["is_last"] for row in rows] == [False] * (len(rows) - 1) + [True]
    for row in rows:
        if row["failure"]:
            raise pickle.loads(row["failure"]).exception()
    return [result for row in rows for result, _ in pickle.loads(row["results"])]


@pytest.fixture
def measurer():
    one = Measurer()
    yield one
    one.close()


@pytest.fixture
def loaded(tmp_path):
    """A stored model, the same model here, and the setting of this process."""
    stored = stored_model(tmp_path)
    tiny_tokenizer(tmp_path / "base")
    base, numerics = load_model(stored.base, stored.precision)
    return stored, attach_adapter(base, stored.adapter, stored.name), numerics, Setting.of(numerics)


def test_a_process_measures_what_the_stage_would(loaded, measurer):
    """One process is asked for all kinds, in turn, with the adapter and without."""
    stored, model, numerics, setting = loaded
    rows = examples(12)
    plan, bald_plan = BatchPlan.of(model, numerics, 24), uncertainty_plan(model, SPEC, numerics, 24)
    for group in (1, 3):
        losses = measured(measurer, Job(ExampleBatches(rows, plan), LossMeasure(stored), group=group), setting)
        assert len(losses) > 3
        assert pl.concat([one.rows for one in losses]).equals(score_examples(model, rows, numerics, max_tokens=24))
        bald = measured(
            measurer, Job(ExampleBatches(rows, bald_plan), UncertaintyMeasure(stored, SPEC), group=group), setting
        )
        assert pl.concat(bald).equals(token_uncertainty(model, rows, SPEC, numerics, max_tokens=24))
    bare = stored.__class__(stored.base, stored.adapter, stored.name, stored.precision, is_active=False)
    found = measured(measurer, Job(ExampleBatches(rows, plan), LossMeasure(bare)), setting)
    with use_adapter(model, None):
        expected = score_examples(model, rows, numerics, max_tokens=24)
    assert pl.concat([one.rows for one in found]).equals(expected)
    assert not expected["loss"].equals(pl.concat([one.rows for one in losses])["loss"])


def test_a_process_measures_snapshots_with_one_base_model(loaded, measurer, tmp_path):
    """Their losses, the reference of their BALD, and how far they are from the base model."""
    stored, model, numerics, setting = loaded
    rows, base = examples(4), []
    save_adapter(tiny_peft(seed=5), tmp_path / "snapshot")
    fresh, other = replace(stored, is_fresh=True), replace(stored, adapter=str(tmp_path / "snapshot"))
    for one, folder in ((fresh, None), (other, other.adapter), (stored, stored.adapter)):
        put_adapter_weights(model, stored.name, folder)
        job = Job(ExampleBatches(rows, BatchPlan.of(model, numerics)), LossMeasure(one))
        assert pl.concat([found.rows for found in measured(measurer, job, setting)]).equals(
            score_examples(model, rows, numerics)
        )
        reference = measured(measurer, Job(SingleBatches(rows), ReferenceMeasure(one, SPEC)), setting)
        assert pl.concat(reference).equals(float64_uncertainty(model, rows, SPEC))
        # Before training, dropout changes nothing.
        assert (pl.concat(reference)["bald"].max() < 1e-12) == one.is_fresh
        change = measured(
            measurer, Job(ExampleBatches(rows, BatchPlan.of(model, numerics)), ChangeMeasure(one)), setting
        )
        assert pl.concat(change).sort(*TOKEN_KEY).equals(teacher_change(model, rows, numerics))
        assert (pl.concat(change)["change"].max() == 0) == one.is_fresh
        base.append(causal_lm(measurer._model.at("float32")[0]))
    assert base[0] is base[1] is base[2]


def test_an_adapter_of_another_shape_is_loaded_with_its_base_model(loaded, measurer, tmp_path):
    stored, model, numerics, setting = loaded
    save_adapter(add_adapter(tiny_model(), LoraSpec(rank=2, alpha=8), 0), tmp_path / "narrow")
    for one in (stored, replace(stored, adapter=str(tmp_path / "narrow"))):
        measured(measurer, Job(ExampleBatches(examples(2), BatchPlan.of(model, numerics)), LossMeasure(one)), setting)
    assert measurer._model.at("float32")[0].peft_config[stored.name].r == 2


def test_a_process_answers_prompts_as_the_stage_would(loaded, measurer, tmp_path):
    stored, model, _, setting = loaded
    prompts, decoding = [[5, 6, 7], [8, 9], [10, 11, 12, 13]], GreedyDecoding(6, 2)
    tokenizer, seen = tiny_tokenizer(tmp_path / "base"), []

    def deal(answer, batches):
        for batch in batches:
            seen.append(batch)
            yield from measured(measurer, Job([batch], AnswerMeasure(stored, decoding)), setting)

    assert generate(model, tokenizer, prompts, decoding, deal=deal) == generate(model, tokenizer, prompts, decoding)
    assert [len(batch) for batch in seen] == [2, 1]


def test_no_examples_are_a_group_without_results(loaded, measurer):
    stored, model, numerics, setting = loaded
    job = Job(ExampleBatches([], BatchPlan.of(model, numerics)), LossMeasure(stored))
    assert measured(measurer, job, setting) == []


def test_other_code_or_another_device_is_refused(loaded, measurer):
    stored, model, numerics, setting = loaded
    job = Job(ExampleBatches(examples(2), BatchPlan.of(model, numerics)), LossMeasure(stored))
    with pytest.raises(InputError, match=r"is not that of the stage \(old\): install the same version on all nodes"):
        measured(measurer, job, Setting("old", "cpu", 1))
    with pytest.raises(InputError, match="computes on cuda and a process of it on cpu; reserve the same kind"):
        measured(measurer, job, Setting(setting.code, "cuda", 1))


def test_every_folder_that_a_measure_reads_is_placed_on_the_node():
    stored = StoredModel("/stage/base", "/stage/adapter", "teacher", "float32")
    for measure, count in ((LossMeasure(stored, truth="/stage/truth"), 3), (LossMeasure(stored), 2)):
        placed = measure.with_folders(lambda folder: folder.replace("/stage", "/node"))
        assert str(measure).count("/stage/") == str(placed).count("/node/") == count
        assert str(placed) == str(measure).replace("/stage", "/node")
    # A truth that only the stage's own node sees is refused like a model.
    with pytest.raises(InputError, match="does not see /elsewhere/truth"):
        setting = Setting("code", "cpu", 1)
        setting.here(LossMeasure(replace(stored, base="/", adapter="/"), truth="/elsewhere/truth"))


def test_a_node_that_does_not_see_the_store_is_one_sentence(loaded, measurer):
    stored, model, numerics, setting = loaded
    elsewhere = LossMeasure(replace(stored, adapter="/elsewhere/adapter"))
    job = Job(ExampleBatches(examples(2), BatchPlan.of(model, numerics)), elsewhere)
    with pytest.raises(InputError, match="does not see /elsewhere/adapter: all nodes have to share the store, or the"):
        measured(measurer, job, setting)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (NonFiniteError("a loss is NaN"), InputError, "a loss is NaN"),
        (MemoryError("no room"), MemoryError, "no room"),
        (OSError(28, "No space left on device", "/x"), OSError, r"\[Errno 28\] No space left on device: '/x'"),
        (KeyError("x"), RuntimeError, "KeyError: 'x'"),
    ],
)
def test_a_failure_ends_the_stage_as_it_would_here(error, kind, said):
    with pytest.raises(kind, match=said):
        raise pickle.loads(pickle.dumps(Failure.of(error))).exception()


def test_the_cluster_has_room_for_what_its_nodes_hold():
    nodes = [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 64.0}]
    needs = reserved_by_process(StageResources(num_cpus=2), cluster_gpus=8)
    assert needs == {"CPU": 2, "GPU": 1.0}
    assert _room(needs, nodes) == 5
    assert reserved_by_process(StageResources(), cluster_gpus=0) == {"CPU": 1}
    assert _room({"CPU": 2}, [{"CPU": 1.0}] * 2) == 0
    shared = StageResources(num_gpus=4, memory="8GB", custom={"fast": 1}).share(4)
    assert _keywords(reserved_by_process(shared, 8)) == {
        "num_cpus": 1,
        "num_gpus": 1.0,
        "memory": 2_000_000_000,
        "resources": {"fast": 1},
    }


@pytest.mark.heavy
def test_a_killed_process_costs_the_batch_that_it_computed(tmp_path):
    """Ray Data computes that block again, and no other; the rows are those of one process."""
    # Ray's sockets are in this folder, and their paths are limited to 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as ray_folder:
        run = subprocess.run(
            [sys.executable, "-m", "tests.support.noted_batches", str(tmp_path)],
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                "RAY_TMPDIR": ray_folder,
                "RAY_AUTH_MODE": "disabled",
                "RAY_ENABLE_OPEN_TELEMETRY": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
                # Workers are niced by default, and wait for every other process of a busy machine.
                "RAY_worker_niceness": "0",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            },
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert run.returncode == 0, run.stderr[-4000:]
    # Ray prints what it says of the killed process.
    found = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    assert found["equal"]
    computed = Counter(line.split()[0] for line in found["noted"])
    assert len(computed) == found["batches"] > 10
    assert {name: times for name, times in computed.items() if times > 1} == {found["killed"]: 2}
    assert len({line.split()[1] for line in found["noted"]}) == 3, "two processes, and the one that replaced the first"
