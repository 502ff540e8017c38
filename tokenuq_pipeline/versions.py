"""The version of every asset's code and configuration.

`code_version` changes when a stage's revision or a field that the stage reads changes, and
only then; data versions are the children's content hashes. Knows no dependencies.
"""

from tokenuq_ml.config import Config
from tokenuq_ml.stages import ablation_fields, code_version, dataset_fields, model_fields, study_fields
from tokenuq_pipeline.nodes import Node


def fields_of(config: Config, node: Node) -> dict:
    """Exactly the fields of the specs that decide the node's result."""
    if node.stage == "models":
        return model_fields(config, node.name)
    if node.stage == "datasets":
        return dataset_fields(config, node.name)
    study = config.studies[node.study]
    if node.ablation:
        return ablation_fields(config, study, config.ablations[node.ablation], node.stage)
    return study_fields(config, study, node.stage)


def code_version_of(config: Config, node: Node) -> str:
    """What Dagster compares with the last materialisation to call an asset stale."""
    return code_version(node.stage, fields_of(config, node))
