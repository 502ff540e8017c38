"""Child process of `<study>/baseline_teacher`: a LoRA adapter fine-tuned by plain MLE."""

import shutil

from tokenuq_ml import process_group
from tokenuq_ml.config import AblationSpec, SelectSpec, TrainSpec
from tokenuq_ml.data.batching import read_examples
from tokenuq_ml.models.adapters import add_adapter
from tokenuq_ml.stages import runner
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.request import StageReporter, StageRequest
from tokenuq_ml.stages.train_adapter import checkpoint_dir, load_base, model_digest, store_adapter
from tokenuq_ml.tables.parquet import content_of
from tokenuq_ml.tensor_digest import joined_digest
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.trainer import train

VANILLA_MLE = AblationSpec(name="vanilla", select=SelectSpec(by="all"))


def run(request: StageRequest, reporter: StageReporter) -> None:
    """Fill the outputs `adapter`, `training_log` and `plots`."""
    fields = request.assets["baseline_teacher"].fields
    spec, seed = TrainSpec(**fields["train"]), fields["seed"]
    base, numerics = load_base(request, fields["precision"])
    context = StageContext("baseline_teacher", request, reporter, numerics)
    examples = read_examples(context.input("tokenized_dataset"), ["train"])
    work_dir = checkpoint_dir(
        context,
        model=model_digest(context.input("model")),
        dataset=content_of(context.input("tokenized_dataset")),
    )
    model = add_adapter(base, spec.lora, seed)
    setup = TrainingSetup(examples, spec, VANILLA_MLE, seed, numerics)
    recorder = train(model, setup, work_dir, reporter, context.name)
    if not process_group.is_main():
        return
    trained = store_adapter(context, model, recorder, work_dir)
    context.done(
        joined_digest(trained.digest, trained.log_digest),
        trained.figures,
        plots={"Training curve": "plots/training_curve.png"},
    )
    # Only after the report: an interrupted training resumes, a forced rerun trains from the first step.
    shutil.rmtree(work_dir)


if __name__ == "__main__":
    runner.main(run)
