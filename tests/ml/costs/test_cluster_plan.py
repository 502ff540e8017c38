"""Plans of clusters: the planner's work over the cards' rates, layouts that fit, and what grows with the data."""

import math

import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.support.tiny_plans import CONFIG, tiny_planner
from tokenuq_ml.config import PrecisionSpec, TrainSpec
from tokenuq_ml.costs import machine, scale_study, volumes
from tokenuq_ml.costs.cards import CARDS
from tokenuq_ml.costs.cluster import Cluster
from tokenuq_ml.costs.cluster_failures import failure_costs, longest_save_steps
from tokenuq_ml.costs.cluster_plan import ClusterPlan
from tokenuq_ml.costs.cluster_stage import weights_bytes
from tokenuq_ml.costs.efficiency import BY_CARD
from tokenuq_ml.costs.machine import LINK_EFFICIENCY, USABLE_MEMORY
from tokenuq_ml.costs.planner import Planner
from tokenuq_ml.costs.table_bytes import TABLE_BYTES
from tokenuq_ml.costs.work import STARTUP_S
from tokenuq_ml.errors import InputError
from tokenuq_ml.scoring.batch_threads import DEVICE_TOKENS
from tokenuq_ml.stages.losses_and_states import SHARD_BATCHES
from tokenuq_ml.tables.parquet import ROW_GROUP_ROWS, TableWriter
from tokenuq_ml.training.checkpoints import CheckpointCallback

EFFICIENCY = BY_CARD["h100"].shares
SIXTY_FOUR = "nodes=64,gpus=8,card=h100"
ASSETS = [
    (f"cluster_plan/{name}", name.rpartition("/")[2], name.rpartition("/")[0])
    for name in ("tokenized_dataset", "baseline_teacher", "token_losses", "token_uncertainty", "mle/student")
] + [("cluster_plan/paper_top25/student", "student", "paper_top25")]


def plan_of(text=SIXTY_FOUR, tokens=10e9, model="Llama-3.1-70B", **train):
    config, lengths = scale_study.scale_study(CONFIG, tokens)
    study = config.studies[scale_study.STUDY]
    if train:
        study = study.model_copy(update={"train": study.train.model_copy(update=train)})
    on = Cluster.parse(text)
    sizes = {study.model: scale_study.published_sizes(model)}
    return ClusterPlan(Planner(config, study, sizes, lengths, on.machine("auto")), on, ASSETS)


def by_stage(plan):
    return {stage.asset.removeprefix("cluster_plan/"): stage for stage in plan.stages}


def test_constants_are_those_of_modules_that_import_torch():
    assert machine.DEVICE_TOKENS == DEVICE_TOKENS and volumes.SHARD_BATCHES == SHARD_BATCHES
    assert volumes.MESSAGE_INTERVAL_S == CheckpointCallback.MESSAGE_INTERVAL_S
    assert set(volumes.ROWS_PER_SECOND) <= set(TABLE_BYTES)


@pytest.mark.parametrize(
    "text, said",
    [
        ("nodes=64,gpus=8", "card missing"),
        ("nodes=64,gpus=8,card=h1000", "'h1000' is not known; there are a100, h100"),
        ("nodes=64,gpus=8,card=h100,color=red", "'color=red' is not understood"),
        ("nodes=64,nodes=2,gpus=8,card=h100", "given twice"),
        ("nodes=6.4,gpus=8,card=h100", "nodes: '6.4' is not a whole number above 0"),
        ("nodes=64,gpus=8,card=h100,price=nan", "price: 'nan' is not a number above 0"),
        ("nodes=64,gpus=8,card=h100,mtbf=-1", "mtbf: '-1' is not a number above 0"),
        ("", "nodes, gpus, card missing"),
    ],
)
def test_a_cluster_that_is_not_understood_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        Cluster.parse(text)


def test_compute_is_the_planners_work_over_the_rate_of_all_gpus():
    plan = plan_of()
    stages, card = by_stage(plan), CARDS["h100"]
    for name, rate in (
        ("baseline_teacher", card.bfloat16 * EFFICIENCY["train"]),
        ("token_losses", card.bfloat16 * EFFICIENCY["score"]),
        ("token_uncertainty", card.float32 * EFFICIENCY["float32"]),
    ):
        flop = sum(plan.planner.work(name).flop.values())
        assert stages[name].seconds_by["compute"] == pytest.approx(flop / (512 * rate)), name
    # 6 N D, less the gradients of frozen weights: 4 N D, and the head's products and adapters above it.
    assert sum(plan.planner.work("baseline_teacher").flop.values()) == pytest.approx(4 * 70.6e9 * 16e9, rel=0.1)


def test_exchange_is_weights_per_pass_and_gradients_per_step():
    stage = by_stage(plan := plan_of("nodes=64,gpus=8,card=h200"))["baseline_teacher"]
    group, passes = stage.layout.group, plan.steps * 8 / stage.layout.examples * 2
    assert 1 < group <= 8 and plan.steps == math.ceil(20e6 / 4096)
    inside, between = LINK_EFFICIENCY * 450e9, LINK_EFFICIENCY * 50e9
    weights = 2 * plan.model.parameters * (group - 1) / group / inside
    gradients = 8 * plan.model.adapter_parameters(32)
    step = gradients * 7 / 8 / inside + gradients / 8 * 63 / 64 / between
    assert stage.seconds_by["exchange"] == pytest.approx(passes * weights + plan.steps * step)


def test_time_is_the_longest_of_what_overlaps_and_the_rest():
    for stage in plan_of().stages:
        parts = dict(stage.seconds_by)
        rest = parts.pop("storage") + parts.pop("one process")
        assert stage.seconds == pytest.approx(STARTUP_S + max(parts.values(), default=0) + rest)


def test_layouts_fit_the_cards_and_the_smallest_sharding_that_fits_is_taken_for_scoring():
    plan = plan_of()
    for stage in plan.stages:
        if stage.layout:
            assert sum(stage.layout.memory.values()) <= USABLE_MEMORY * 80e9
            assert stage.layout.group > 1 and "gathered weights" in stage.layout.memory
    # 141 GB do not fit one or two cards of 80 GB with anything else; 282 GB do not fit four.
    stages = by_stage(plan)
    assert stages["token_losses"].layout.group == 4 and stages["token_uncertainty"].layout.group == 8
    assert weights_bytes(plan.model, "float32") == 2 * weights_bytes(plan.model, "bfloat16")
    small = by_stage(plan_of("nodes=1,gpus=1,card=h100", 1e6, "Llama-3.2-1B"))["baseline_teacher"]
    assert small.layout.group == 1 and small.seconds_by["exchange"] == 0


def test_what_fits_no_layout_is_refused():
    with pytest.raises(InputError, match="one example of 1,024 tokens does not fit the memory of a l40s"):
        plan_of("nodes=64,gpus=8,card=l40s")


def test_a_study_in_float32_trains_at_the_rate_of_float32():
    plans = {}
    for precision in ("bfloat16", "float32"):
        on = Cluster.parse("nodes=1,gpus=2,card=h100")
        study = {"train": TrainSpec(batch_size=8), "precision": PrecisionSpec.model_validate(precision)}
        planner = tiny_planner(machine=on.machine(precision), **study)
        plans[precision] = ClusterPlan(planner, on, [("quickstart/baseline_teacher", "baseline_teacher", "")])
    slow, fast = (plans[name].stages[0] for name in ("float32", "bfloat16"))
    rate = 989 * EFFICIENCY["train"] / (67 * EFFICIENCY["float32"])
    assert slow.seconds_by["compute"] == pytest.approx(rate * fast.seconds_by["compute"])
    assert slow.layout.memory["weights"] == 2 * fast.layout.memory["weights"]


def test_gpus_without_an_example_have_no_work():
    few = by_stage(plan_of(batch_size=8, tokens=1e7))["baseline_teacher"]
    many = by_stage(plan_of(batch_size=512, tokens=1e7))["baseline_teacher"]
    assert (few.working, many.working) == (8, 512)
    assert few.seconds_by["compute"] == pytest.approx(64 * many.seconds_by["compute"])


def test_a_quantile_over_several_gpus_takes_a_pass_of_its_own():
    student = by_stage(plan_of())["paper_top25/student"]
    alone = by_stage(plan_of("nodes=1,gpus=1,card=b200", 1e6, "Llama-3.2-1B", batch_size=1))["paper_top25/student"]
    plain = by_stage(plan_of())["mle/student"]
    # Online teacher and selection: two forward passes more.
    assert student.seconds_by["exchange"] > 1.9 * plain.seconds_by["exchange"]
    assert (
        alone.work.flop["train"]
        < 1.1
        * by_stage(plan_of("nodes=1,gpus=1,card=b200", 1e6, "Llama-3.2-1B", batch_size=1))["mle/student"].work.flop[
            "train"
        ]
    )


def test_checkpoints_rewrite_the_selections_so_far():
    every, never = plan_of(save_steps=50), plan_of(save_steps=10**6)
    slow, fast = (by_stage(plan)["mle/student"].seconds_by["one process"] for plan in (every, never))
    saves = (every.steps - 1) // 50
    assert slow - fast == pytest.approx(10e9 * saves / 2 / volumes.CHECKPOINT_ROWS_PER_SECOND)


def test_volumes_at_ten_billion_tokens():
    plan = plan_of()
    tables = {table.name: table for table in plan.tables}
    assert tables["selections"].rows == 10e9 and tables["selections"].row_groups == math.ceil(10e9 / ROW_GROUP_ROWS)
    assert plan.shard_tokens == ROW_GROUP_ROWS and plan.shards == math.ceil(10.01e9 / ROW_GROUP_ROWS)
    cache = plan.teacher_cache
    assert cache["bytes"] == pytest.approx(10e9 * (16_384 + 16_388)) and plan.planner.online_reason
    assert cache["read_seconds"] == pytest.approx(10e9 * 16_388 / 64e9)
    events, size = volumes.dagster_events(20, 500.0)
    assert events == 20 * volumes.EVENTS_PER_ASSET + 100 and size > 20 * volumes.EVENT_BYTES_PER_ASSET


def test_the_footer_of_a_table_is_as_large_as_planned(tmp_path):
    rows = 2 * ROW_GROUP_ROWS
    frame = pl.DataFrame({"position": range(rows)}, schema={"position": pl.Int32}).with_columns(
        pl.lit(1, pl.Int32).alias("step"),
        pl.lit(0.5, pl.Float32).alias("epoch"),
        pl.lit("a").alias("example_id"),
        (pl.col("position") * 0.37 % 1).cast(pl.Float32).alias("loss"),
        (pl.col("position") % 4 == 0).alias("selected"),
        pl.lit("mle").alias("objective"),
    )
    with TableWriter("selections", tmp_path, spec_hash="", code_version="") as writer:
        writer.append(frame)
    footer = pq.read_metadata(writer.path).serialized_size
    planned = volumes.table_volume("selections", TABLE_BYTES["selections"] * rows)
    assert planned.row_groups == 2
    # The schema and our metadata come once.
    assert planned.footer < footer < planned.footer + 4000


def test_a_study_of_the_configuration_is_planned_on_a_cluster():
    plan = tiny_planner(train=TrainSpec(batch_size=8), machine=Cluster.parse(SIXTY_FOUR).machine("auto"))
    assets = [("quickstart/baseline_teacher", "baseline_teacher", ""), ("quickstart/token_losses", "token_losses", "")]
    made = ClusterPlan(plan, Cluster.parse(SIXTY_FOUR), assets)
    assert made.stages[0].work.flop == plan.work("baseline_teacher").flop
    assert made.gpu_hours == pytest.approx(made.seconds / 3600 * 512)


def test_failures_lose_under_one_percent_at_the_stated_time_between_them():
    plan = plan_of()
    costs = failure_costs(plan)
    assert plan.cluster.mtbf_s == pytest.approx(54 * 86_400 * 2048 / 419 / 64)
    for cost in costs:
        assert cost.closed < 0.01 and cost.simulated < 0.01 < cost.from_start
    losses, bald, training = costs
    assert training.of_writer is None
    for cost in (losses, bald):
        # The process that writes the table loses what it has not kept yet, and with torchrun every process does.
        assert 0 < cost.of_writer < cost.of_ranks < 0.01 and cost.of_writer_simulated < 0.01
        lost = cost.kept + cost.unit / 64
        assert cost.of_writer == pytest.approx(lost / 2 / (plan.cluster.mtbf * 3600), rel=0.5)
    longest = longest_save_steps(plan)
    kept, lost = plan_of(save_steps=longest), plan_of(save_steps=longest + 2)
    assert failure_costs(kept)[-1].closed <= 0.01 < failure_costs(lost)[-1].closed


def test_what_is_kept_is_bounded_in_memory_and_in_time():
    size = TABLE_BYTES["token_uncertainty"] * 1e9
    assert volumes.kept_every("token_uncertainty", size, 1000.0) == pytest.approx(1000.0 * 2**28 / 46e9)
    day = 24 * 3600.0
    assert volumes.kept_every("token_uncertainty", size, day) == pytest.approx(day / 1000)
    assert volumes.kept_every("token_uncertainty", size / 1e6, 1000.0) == 60.0
    assert volumes.keeping_seconds("selections", 1e9) == 0.0


def test_sizes_that_are_not_known_are_refused():
    with pytest.raises(InputError, match="sizes are not known"):
        ClusterPlan(tiny_planner(model_config=None), Cluster.parse(SIXTY_FOUR), [])
    with pytest.raises(InputError, match="--model: nowhere: is no config.json and not one of Llama-3.2-1B"):
        scale_study.published_sizes("nowhere")


def test_what_stages_cannot_do_yet_is_said():
    assert plan_of("nodes=1,gpus=8,card=h200", 1e6, "Llama-3.2-1B").not_in_code() == []
    shared, measuring = plan_of("nodes=64,gpus=8,card=h200").not_in_code()
    assert "shared by 4 GPUs" in shared
    assert measuring.startswith("measuring with weights shared by 2 or 4 GPUs")
