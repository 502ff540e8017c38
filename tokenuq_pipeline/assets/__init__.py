"""The asset graph, one file per stage. Each builds `StageAsset`s; `run_stage.py` makes Dagster assets of them."""
