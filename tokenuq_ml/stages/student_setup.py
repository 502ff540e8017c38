"""What a student is trained with: the teacher's states, the columns of the token tables, and their content digests."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from tokenuq_ml import process_group
from tokenuq_ml.config import AblationSpec, TrainSpec
from tokenuq_ml.data.batching import TokenizedExample
from tokenuq_ml.models.adapters import TrainedModel, adapter_digest, attach_adapter
from tokenuq_ml.models.load import load_model
from tokenuq_ml.scoring.token_truth import TokenTruth
from tokenuq_ml.stages.adapted_model import TEACHER_ADAPTER
from tokenuq_ml.stages.context import StageContext
from tokenuq_ml.stages.train_adapter import model_digest
from tokenuq_ml.tables.parquet import content_of
from tokenuq_ml.tensor_digest import tensors_digest
from tokenuq_ml.training.online_marker import read_online_reason
from tokenuq_ml.training.setup import TrainingSetup
from tokenuq_ml.training.teacher import OnlineTeacher, SeparateTeacher, TeacherSource
from tokenuq_ml.training.teacher_cache import HIDDEN_FILE, CachedTeacher
from tokenuq_ml.training.teacher_head import HEAD_FILE
from tokenuq_ml.training.token_columns import read_columns


@dataclass(frozen=True)
class StudentSetup:
    """A student's training setup, with what decides its result apart from the asset's fields."""

    training: TrainingSetup
    input_digests: dict[str, str]
    """Input -> content digest; part of the key of the checkpoints."""
    online_reason: str | None
    """Why the teacher runs online although the study asks for cached states; None otherwise."""

    @property
    def teacher_metrics(self) -> dict[str, str]:
        """Return the metrics that say where the teacher's states come from."""
        name, teacher = self.training.ablation.distils_from, self.training.teacher
        if name is None or teacher is None:
            return {"teacher": "none", "teacher_states": "none"}
        metrics = {"teacher": name, "teacher_states": teacher.form}
        return metrics | ({"teacher_states_reason": self.online_reason} if self.online_reason else {})


def student_train_spec(fields: dict, ablation: AblationSpec) -> TrainSpec:
    """Return the training budget, in which the ablation's `train` is applied, with its own LoRA settings."""
    spec = TrainSpec(**fields["train"])
    return spec.model_copy(update={"lora": ablation.lora.of(spec.lora)})


def student_setup(
    context: StageContext,
    model: TrainedModel,
    examples: list[TokenizedExample],
    ablation: AblationSpec,
    spec: TrainSpec,
) -> StudentSetup:
    """Return what the student is trained with.

    An online teacher's adapter is attached to `model`; of a model without an adapter, the teacher is another model.
    """
    inputs, fields = context.request.inputs, context.asset.fields
    train_examples = [example for example in examples if example.split == "train"]
    digests = {"model": model_digest(inputs["model"]), "dataset": content_of(inputs["tokenized_dataset"])}
    teacher, teacher_digests, online_reason = _teacher(context, model, ablation, digests["dataset"])
    digests |= teacher_digests
    columns = None
    if ablation.columns_read:
        columns = read_columns(ablation.columns_read, inputs, train_examples)
    truth = None
    if ablation.student_columns_read and "token_truth" in inputs:
        truth = TokenTruth.read(inputs["token_truth"], {example.example_id for example in train_examples})
    digests |= {table: content_of(inputs[table]) for table in ablation.tables_read}
    training = TrainingSetup(
        train_examples,
        spec,
        ablation,
        ablation.seed,
        context.numerics,
        teacher=teacher,
        columns=columns,
        truth=truth,
        snapshot_fractions=tuple(fields["fractions"]),
    )
    return StudentSetup(training, digests, online_reason)


def _teacher(
    context: StageContext, model: TrainedModel, ablation: AblationSpec, dataset_digest: str
) -> tuple[TeacherSource | None, dict[str, str], str | None]:
    """Return the source of the teacher's states, the digest of its files, and why it runs online against the fields."""
    if ablation.distils_from is None:
        return None, {}, None
    if ablation.distils_from == "base":
        if not isinstance(model, PeftModel):
            return _separate(context, context.input("model")), {}, None
        return OnlineTeacher(None, context.numerics), {}, None
    cached = context.asset.fields["teacher_states"] == "cached"
    online_reason = read_online_reason(context.input("teacher_hidden")) if cached else None
    if cached and online_reason is None:
        folder = context.input("teacher_hidden")
        teacher = CachedTeacher(
            folder,
            context.numerics.device,
            dataset_digest=dataset_digest,
            teacher_digest=adapter_digest(context.input("teacher")),
            # Mean embeddings cannot give the factors of the cross-entropy.
            distillation=ablation.distillation if ablation.can_use_mean_embeddings else None,
        )
        files = [path for name in (HIDDEN_FILE, HEAD_FILE) if (path := Path(folder, name)).exists()]
        return teacher, {"teacher": process_group.on_main(lambda: "-".join(map(tensors_digest, files)))}, None
    if not isinstance(model, PeftModel):
        folder = context.input("teacher")
        return _separate(context, folder), {"teacher": adapter_digest(folder)}, online_reason
    attach_adapter(model, context.input("teacher"), TEACHER_ADAPTER)
    digest = tensors_digest(context.input("teacher") / "adapter_model.safetensors")
    return OnlineTeacher(TEACHER_ADAPTER, context.numerics), {"teacher": digest}, online_reason


def _separate(context: StageContext, folder: str | Path) -> SeparateTeacher:
    """Return a teacher that is a complete model, in the dtype of the student's passes."""
    precision = str(context.numerics.fields()["precision"])
    teacher, _ = load_model(folder, precision, context.request.base_settings)
    return SeparateTeacher(teacher, context.numerics)
