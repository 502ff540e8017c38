"""Child process of `<study>/teacher_change`: the teacher's divergence from the base model, per response token.

Only studies with an ablation that reads it have this asset. Measured in float32, whatever the study's precision is.
"""

import polars as pl

from tokenuq_ml.data.batching import StoredExamples
from tokenuq_ml.scoring.teacher_change import teacher_change
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.adapted_model import TEACHER_ADAPTER, AdaptedModel
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.losses_and_states import stored_shards
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.tables.parquet import TableWriter

STAGE = "teacher_change"


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the output `teacher_change`."""
    inputs = request.inputs
    model, numerics = AdaptedModel(inputs["model"], inputs["adapter"], TEACHER_ADAPTER).at("float32")
    context, dataset = StageContext(STAGE, request, reporter, numerics), inputs["tokenized_dataset"]
    progress = context.progress(2 * sum(len(example.input_ids) for example in StoredExamples(dataset)))
    with TableWriter(STAGE, context.output(STAGE), **context.asset.stamp) as table:
        for shard in stored_shards(dataset, numerics):
            table.append(teacher_change(model, shard, numerics, progress.add))
    change = pl.scan_parquet(table.path).select(
        mean_change=pl.col("change").mean(), unchanged=(pl.col("change") == 0).mean(), tokens=pl.len()
    )
    context.done(table.digest, change.collect(engine="streaming").to_dicts()[0])


if __name__ == "__main__":
    runner.main(run)
