"""Greedy answers by vLLM on a CUDA device: `engine: vllm` of an evaluation.

vLLM has kernels, weights and a cache of its own, so that its logits differ from the model's by rounding.
`require_greedy` compares each engine's first answers with the model's own forward pass, under the same adapter.

For vLLM 0.11 and later. The engine runs inside this process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`): it ends with the
stage, and schedules the same prompts in the same order each time. Shapes: A tokens of an answer, V vocabulary.
"""

import gc
import importlib.util
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tokenuq_ml.errors import InputError
from tokenuq_ml.evaluation.decode_loop import Prompts
from tokenuq_ml.evaluation.generation import GreedyDecoding
from tokenuq_ml.evaluation.vllm_limits import RANKS
from tokenuq_ml.models.numerics import Numerics
from tokenuq_ml.models.placement import NARROW

FREE_SHARE = 0.9
"""Share of the device's free memory that the engine may take, in addition to the stage's own model."""
REMEDY = "remove `engine` from the evaluation, so that the stage's own model answers"


class VllmEngine:
    """A base model in vLLM, with one adapter at a time.

    Args:
        folder: of the base model.
        numerics: of the stage.
        rows: answers that are generated at the same time.
        max_length: most tokens of a prompt with its answer.
        rank: of the adapters; None: there will be none.

    Raises:
        InputError: vLLM is missing, or the stage does not run on a CUDA device.
    """

    def __init__(self, folder: str | Path, numerics: Numerics, rows: int, max_length: int, rank: int | None):
        require_vllm(numerics)
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        import vllm

        self._adapters: dict[str, int] = {}
        adapters = {} if rank is None else {"enable_lora": True, "max_lora_rank": _allowed(rank)}
        self._llm: Any = vllm.LLM(
            model=str(folder),
            dtype=str(numerics.dtype).removeprefix("torch."),
            max_model_len=max_length,
            max_num_seqs=rows,
            gpu_memory_utilization=_memory_share(numerics.device),
            seed=0,
            **adapters,
        )

    def answers(
        self, prompts: Prompts, decoding: GreedyDecoding, ends: Iterable[int], adapter: str | Path | None
    ) -> Prompts:
        """Return the greedy answer to each prompt, with the end of turn, and up to a stop string.

        Args:
            prompts: token ids.
            decoding: lengths and stop strings.
            ends: ids that end an answer.
            adapter: folder of a LoRA adapter of PEFT; None: the base model.
        """
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=decoding.max_new_tokens,
            stop=list(decoding.stop) or None,
            stop_token_ids=sorted(ends) or None,
            # Only `ends` counts: the model's generation config has been read for them.
            ignore_eos=True,
            skip_special_tokens=False,
            detokenize=bool(decoding.stop),
        )
        request = None
        if adapter is not None:
            number = self._adapters.setdefault(str(adapter), len(self._adapters) + 1)
            request = LoRARequest(f"adapter_{number}", number, str(adapter))
        given = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self._llm.generate(given, parameters, use_tqdm=False, lora_request=request)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        """Free the device's memory."""
        self._llm = None
        gc.collect()
        torch.cuda.empty_cache()


def require_vllm(numerics: Numerics) -> None:
    """Check that vLLM can run here.

    Raises:
        InputError: it is missing, or there is no CUDA device.
    """
    if not numerics.device.startswith("cuda"):
        raise InputError(f"`engine: vllm` needs a CUDA device, and this stage runs on {numerics.device}; {REMEDY}")
    if importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"`engine: vllm` needs the package vllm, which is not installed: pip install 'tokenuq[vllm]'; or {REMEDY}"
        )


def adapter_rank(folder: str | Path) -> int:
    """Return the rank of a stored LoRA adapter.

    Raises:
        InputError: the folder holds another kind of weights, which vLLM does not apply.
    """
    path = Path(folder, "adapter_config.json")
    settings = json.loads(path.read_text()) if path.is_file() else {}
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise InputError(f"`engine: vllm` answers under plain LoRA adapters, and {folder} holds none; {REMEDY}")
    return max([settings["r"], *(settings.get("rank_pattern") or {}).values()])


@torch.no_grad()
def require_greedy(model: PreTrainedModel, prompts: Prompts, answers: Prompts) -> None:
    """Check that each token of the answers is the likeliest one by the model's own forward pass, but for rounding.

    Raises:
        InputError: one is not.
    """
    tolerance = 0.1 if model.dtype in NARROW else 1e-3
    for prompt, answer in zip(prompts, answers, strict=True):
        if not answer:
            continue
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        logits_AV = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        if bool((_gaps(logits_AV, answer) > tolerance).any()):
            raise InputError(
                "vLLM's answers are not the greedy ones of the model's own forward pass, by more than rounding: it "
                f"computes another model, or another adapter; {REMEDY}"
            )


def _gaps(logits_AV: Tensor, answer: Sequence[int]) -> Tensor:
    """Return by how much each token's logit is below the largest, in standard deviations of the logits."""
    chosen_A = logits_AV.gather(1, torch.tensor(answer, device=logits_AV.device)[:, None])[:, 0]
    return (logits_AV.max(-1).values - chosen_A) / logits_AV.std(-1)


def _allowed(rank: int) -> int:
    if rank > RANKS[-1]:
        raise InputError(f"`engine: vllm` takes adapters of rank {RANKS[-1]} at most, not {rank}; {REMEDY}")
    return next(allowed for allowed in RANKS if allowed >= rank)


def _memory_share(device: str) -> float:
    """Return the share of the device's memory for the engine: most of what the stage's own model leaves."""
    free, total = torch.cuda.mem_get_info(device)
    return FREE_SHARE * free / total
