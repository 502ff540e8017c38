"""The assets of a study that its ablations share: tokens, teacher, token tables, references, analysis."""

import dagster as dg

from tokenuq_ml.config import Config
from tokenuq_ml.specs import StudySpec
from tokenuq_pipeline.assets.factory import Stage, child_process_assets
from tokenuq_pipeline.nodes import Node, dataset_node, model_node

TABLE = frozenset({"polars", "parquet"})
MODEL_TABLE = frozenset({"torch", "polars", "parquet"})


def study_assets(config: Config, study: StudySpec) -> list[dg.AssetsDefinition]:
    """Every study-level asset but the report."""
    return [_tokenized_dataset(config, study), _baseline_teacher(config, study), _measure(config, study),
            _uncertainty_analysis(config, study)]


def _tokenized_dataset(config: Config, study: StudySpec) -> dg.AssetsDefinition:
    model, sources = model_node(study.model), [dataset_node(name) for name in (study.dataset, *study.ood)]
    stage = Stage(
        Node("tokenized_dataset", study.name), deps=(model, *sources), kinds=TABLE,
        description="Every example in the model's own tokens, chat template applied; response_mask marks the tokens "
                    f"that are trained and scored. Cut at {study.max_length} tokens.")
    return child_process_assets(
        config, f"{study.name}__tokenized_dataset", "tokenize_dataset", [stage],
        lambda store, stages: {
            "model": store.path(model, "weights"),
            **{f"examples/{source.name}": store.path(source, "examples") for source in sources}})


def _baseline_teacher(config: Config, study: StudySpec) -> dg.AssetsDefinition:
    model, tokens = model_node(study.model), Node("tokenized_dataset", study.name)
    stage = Stage(
        Node("baseline_teacher", study.name), deps=(model, tokens), kinds=frozenset({"torch"}),
        description=f"LoRA adapter (rank {study.train.lora.rank}, alpha {study.train.lora.alpha}) fine-tuned by vanilla "
                    f"MLE with seed {study.teacher_seed}: the teacher of self-distillation and the model whose token "
                    "losses and uncertainty the tables hold.")
    return child_process_assets(
        config, f"{study.name}__baseline_teacher", "train_teacher", [stage],
        lambda store, stages: {"model": store.path(model, "weights"),
                               "tokenized_dataset": store.path(tokens, "tokenized_dataset")})


def _measure(config: Config, study: StudySpec) -> dg.AssetsDefinition:
    """One child for all that needs the teacher in memory: starting it costs more than some of the passes."""
    model, tokens = model_node(study.model), Node("tokenized_dataset", study.name)
    teacher = Node("baseline_teacher", study.name)
    prompts = [dataset_node(name) for name in config.evaluation_datasets(study)]
    seen = (model, tokens, teacher)
    stages = [
        Stage(Node("token_losses", study.name), deps=seen, kinds=MODEL_TABLE,
              description="One row a response token of every split: cross-entropy, entropy and rank under the teacher, "
                          "and loss and entropy under the base model, dropout off, in nats."),
        Stage(Node("teacher_hidden", study.name), deps=seen, kinds=frozenset({"torch"}),
              description="The teacher's last hidden states of the train split's response tokens: one product with "
                          "the frozen head away from its exact distribution, so that distillation needs no teacher "
                          "forward pass."),
        Stage(Node("token_uncertainty", study.name), deps=seen, kinds=MODEL_TABLE,
              description=f"Monte-Carlo dropout with {study.uncertainty.samples} samples of the teacher's adapter: BALD "
                          "(epistemic) and expected entropy (aleatoric) of every response token, in nats."),
        Stage(Node("reference_evaluation", study.name), deps=(*seen, *prompts), kinds=MODEL_TABLE,
              description="The base model and the teacher on every metric that the students are measured by: the "
                          "report's top rows."),
    ]
    return child_process_assets(
        config, f"{study.name}__measure", "measure", stages,
        lambda store, stages: {
            "model": store.path(model, "weights"), "tokenized_dataset": store.path(tokens, "tokenized_dataset"),
            "adapter": store.path(teacher, "adapter"),
            **{f"examples/{source.name}": store.path(source, "examples") for source in prompts}})


def _uncertainty_analysis(config: Config, study: StudySpec) -> dg.AssetsDefinition:
    losses, uncertainty = Node("token_losses", study.name), Node("token_uncertainty", study.name)
    stage = Stage(
        Node("uncertainty_analysis", study.name), deps=(losses, uncertainty), kinds=TABLE,
        description="Is the loss a proxy of epistemic uncertainty? Correlations of loss, entropy and BALD (Pearson, "
                    "Spearman, partial given entropy), by split and token category.")
    return child_process_assets(
        config, f"{study.name}__uncertainty_analysis", "analyse", [stage],
        lambda store, stages: {"token_losses": store.path(losses, "token_losses"),
                               "token_uncertainty": store.path(uncertainty, "token_uncertainty")})
