"""The asset graph, one file per stage, in the order that data flows.

models, datasets, tokenized_dataset, baseline_teacher, teacher_scores, uncertainty_analysis, ablation,
ablation_report. Each file builds `StageAsset`s; `run_stage.py` makes Dagster assets of them.
"""
