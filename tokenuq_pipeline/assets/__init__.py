"""The asset graph, one file a stage, in the order that data flows:

models, datasets, tokenized_dataset, baseline_teacher, measure, uncertainty_analysis, ablation, ablation_report.
Each file is a factory of `StageAsset`s; `stage.py` turns those into Dagster's.
"""
