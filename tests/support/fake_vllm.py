"""A package `vllm` with the parts of its documented interface that are used, on transformers and PEFT."""

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

LLM_ARGUMENTS = {
    *("model", "dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization", "seed"),
    *("enable_lora", "max_lora_rank"),
}


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """Greedy answers, one prompt after the other; `ignores_adapters` makes it wrong."""

    made: list["LLM"] = []
    ignores_adapters = False

    def __init__(self, **arguments):
        assert set(arguments) <= LLM_ARGUMENTS and 0 < arguments["gpu_memory_utilization"] < 1
        self.arguments, self.calls, self._loaded = arguments, 0, {}
        LLM.made.append(self)

    def _model(self, request: LoRARequest | None):
        if request not in self._loaded:
            self._loaded[request] = self._load(request)
        return self._loaded[request]

    def _load(self, request: LoRARequest | None):
        model = AutoModelForCausalLM.from_pretrained(
            self.arguments["model"], dtype=getattr(torch, self.arguments["dtype"])
        ).eval()
        if request is None or self.ignores_adapters:
            return model
        assert self.arguments["enable_lora"]
        return PeftModel.from_pretrained(model, request.lora_path).eval()

    @torch.no_grad()
    def generate(self, prompts, sampling_params, *, use_tqdm=True, lora_request=None):
        assert sampling_params.temperature == 0 and sampling_params.ignore_eos and not use_tqdm
        self.calls += 1
        model, outputs = self._model(lora_request), []
        for prompt in prompts:
            ids, new = prompt["prompt_token_ids"], []
            assert len(ids) + sampling_params.max_tokens <= self.arguments["max_model_len"]
            while len(new) < sampling_params.max_tokens and not {*new[-1:]} & {*(sampling_params.stop_token_ids or ())}:
                new.append(int(model(torch.tensor([[*ids, *new]])).logits[0, -1].argmax()))
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new))]))
        return outputs


def install(monkeypatch) -> type[LLM]:
    """Make `import vllm` find it; return its engine."""
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    package.__spec__ = SimpleNamespace(name="vllm")
    for name, module in (("vllm", package), ("vllm.lora", lora), ("vllm.lora.request", request)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM
