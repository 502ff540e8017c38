"""The table of options that touch losses or batches is complete for the installed versions, and on the page."""

import dataclasses
import re

import pytest

from tests.support.paths import ROOT
from tokenuq_ml.training.trainer_options import OPTIONS

UNTOUCHED = """
    output_dir num_train_epochs max_steps learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
    optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon optim_target_modules bf16_full_eval fp16_full_eval
    tf32 use_cache torch_empty_cache_steps logging_strategy logging_steps logging_first_step log_on_each_node
    log_level log_level_replica disable_tqdm report_to run_name project trackio_space_id
    trackio_bucket_id trackio_static_space_id eval_strategy eval_steps eval_delay per_device_eval_batch_size
    eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics
    batch_eval_metrics save_only_model save_strategy save_steps save_on_each_node save_total_limit
    enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push
    hub_revision load_best_model_at_end metric_for_best_model greater_is_better ignore_data_skip
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu dataloader_num_workers
    dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order ddp_find_unused_parameters ddp_bucket_cap_mb
    ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics do_train do_eval
    do_predict resume_from_checkpoint local_rank model_init_kwargs trust_remote_code chat_template_path
    dataset_text_field dataset_kwargs dataset_num_proc eos_token pad_token
""".split()
"""Fields that the objective does not touch: optimiser, logs, evaluation, checkpoints, devices, reading of texts."""


@pytest.mark.parametrize("module, name", [("transformers", "TrainingArguments"), ("trl", "SFTConfig")])
def test_each_field_of_the_installed_version_is_known(module, name):
    """A new field needs a decision: an entry of OPTIONS with a test, or a place in the list above."""
    config = getattr(pytest.importorskip(module), name)
    fields = {field.name for field in dataclasses.fields(config)}
    assert fields <= {*OPTIONS, *UNTOUCHED}, fields - {*OPTIONS, *UNTOUCHED}
    assert not set(OPTIONS) & set(UNTOUCHED)


def test_the_page_lists_each_option():
    page = (ROOT / "docs/library.md").read_text()
    section = page[page.index("### Options of the Trainer") :].split("\n## ")[0]
    listed = {
        name for row in re.findall(r"^\| (.+?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert set(OPTIONS) <= listed, set(OPTIONS) - listed
