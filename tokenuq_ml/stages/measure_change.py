"""Child process of `<study>/teacher_change`: the teacher's divergence from the base model, per response token.

Only studies with an ablation that reads it have this asset. Measured in float32, whatever the study's precision is. Of
several processes, all measure, and rank 0 writes and reports.
"""

from collections import deque
from collections.abc import Iterator

import polars as pl

from tokenuq_ml import process_group
from tokenuq_ml.data.stored_examples import StoredExamples
from tokenuq_ml.models.adapters import TrainedModel
from tokenuq_ml.scoring.batch_threads import BatchPlan
from tokenuq_ml.scoring.teacher_change import teacher_change
from tokenuq_ml.stages import batch_actors, runner
from tokenuq_ml.stages.adapted_model import TEACHER_ADAPTER, AdaptedModel, StoredModel
from tokenuq_ml.stages.batch_work import Job
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.losses_and_states import stored_batches, stored_shards
from tokenuq_ml.stages.measures import ChangeMeasure
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.tables.parquet import TableWriter
from tokenuq_ml.tables.schemas import TOKEN_KEY

STAGE = "teacher_change"


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `teacher_change`."""
    inputs = request.inputs
    teacher = AdaptedModel(
        inputs["model"],
        inputs["adapter"],
        TEACHER_ADAPTER,
        sharding=request.sharding,
        settings=request.base_settings,
    )
    model, numerics = teacher.at("float32")
    context = StageContext(STAGE, request, reporter, numerics)
    changes = _changes_of_shards(context, model, teacher.stored(numerics))
    if not process_group.is_main():
        deque(changes, maxlen=0)
        return
    with TableWriter(STAGE, context.output(STAGE), **context.asset.stamp) as table:
        for rows in changes:
            table.append(rows)
    change = pl.scan_parquet(table.path).select(
        mean_change=pl.col("change").mean(), unchanged=(pl.col("change") == 0).mean(), tokens=pl.len()
    )
    context.done(table.digest, change.collect(engine="streaming").to_dicts()[0])


def _changes_of_shards(context: StageContext, model: TrainedModel, stored: StoredModel) -> Iterator[pl.DataFrame]:
    """Yield the rows of each shard, measured here or by the processes of a cluster."""
    dataset, numerics, actors = context.input("tokenized_dataset"), context.numerics, batch_actors.current()
    progress = context.progress(2 * sum(len(example.input_ids) for example in StoredExamples(dataset)))
    if actors is None:
        for shard in stored_shards(dataset, numerics):
            yield teacher_change(model, shard, numerics, progress.add)
        return
    plan, measure = BatchPlan.of(model, numerics), ChangeMeasure(stored)
    jobs = [Job(batches, measure, group=plan.workers) for batches, _ in stored_batches(dataset, plan, numerics)]
    for rows in actors.run(jobs, numerics, progress.add):
        yield pl.concat(rows).sort(*TOKEN_KEY)


if __name__ == "__main__":
    runner.main(run)
