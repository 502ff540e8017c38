"""Compile every Triton kernel for cards that need not be there: `python -m tests.support.compiled_kernels 80 90`.

Prints a line per kernel: its name, its variant, the compute capability, and the bytes of machine code.
"""

import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokenuq_ml.kernels import triton_kernels
from tokenuq_ml.kernels.fused_dropout import BLOCK as DROPOUT_BLOCK
from tokenuq_ml.kernels.launching import LANES, WARPS

V = 128_256
POINTERS = {
    **dict.fromkeys(("product", "bias", "teacher", "teacher_bias"), "*bf16"),
    **dict.fromkeys(("lse", "loss", "entropy", "weight", "teacher_lse", "lse_at_t", "mle", "distill"), "*fp32"),
    **dict.fromkeys(("divergence", "predictive", "expected", "bald", "std_error", "mc_loss"), "*fp32"),
    **{"label": "*i64", "rank": "*i32", "is_top1": "*i1"},
    **dict.fromkeys(("stride", "teacher_stride", "rows", "samples"), "i32"),
    "sample_stride": "i64",
    **dict.fromkeys(("words", "keys"), "*i64"),
    **dict.fromkeys(("word_1", "word_2", "word_3"), "i64"),
    "blocks": "i32",
    **dict.fromkeys(("out", "x", "onto"), "*bf16"),
    **{"seed": "i64", "elements": "i32"},
}
CONSTANTS = {"SUM": tl.float32, "COLUMNS": V, "COMMON": V, "TEMPERATURE": 1.0, "TINY": 1.2e-38, "SAMPLES": 16}
PLAIN = {"SCALE": 1.0, "SOFTCAP": 0.0, "TEACHER_SCALE": 1.0, "TEACHER_SOFTCAP": 0.0, "bias": None, "teacher_bias": None}
GEMMA = {"SCALE": 0.5, "SOFTCAP": 30.0, "TEACHER_SCALE": 0.5, "TEACHER_SOFTCAP": 30.0}
VARIANTS = {
    "row_statistics": [{"BLOCK": LANES}, {"BLOCK": LANES, "label": None, "TEMPERATURE": 2.0}],
    "softmax_gradient": [{"BLOCK": LANES}, {"BLOCK": LANES, "label": None, "weight": None}],
    "forward_kl_gradient": [{"BLOCK": LANES // 2}, {"BLOCK": LANES // 2, "mle": None, "COMMON": V - 5}],
    "monte_carlo": [{"BLOCK": LANES // 16}],
    "philox_words": [{"BLOCK": 256}],
    "drop_elements": [
        {"BLOCK": DROPOUT_BLOCK, "DROPPED": 3277},
        {"BLOCK": DROPOUT_BLOCK, "DROPPED": 3277, "onto": None},
    ],
}


def compiled(name: str, constants: dict, capability: int) -> int:
    """Return the bytes of machine code of a kernel."""
    function = getattr(triton_kernels, name)
    given = {key: value for key, value in constants.items() if key in function.arg_names}
    signature = {key: "constexpr" if key in given else POINTERS[key] for key in function.arg_names}
    positions = {(function.arg_names.index(key),): value for key, value in given.items()}
    source = ASTSource(function, signature, positions)
    target = GPUTarget("cuda", capability, 32)
    return len(triton.compile(source, target=target, options={"num_warps": WARPS}).asm["cubin"])


def main(capabilities: list[int]) -> None:
    """Compile all kernels for cards of these compute capabilities, e.g. 80 and 90."""
    for capability in capabilities:
        for name, variants in VARIANTS.items():
            for number, variant in enumerate(variants):
                for head, constants in (("plain", PLAIN), ("soft-capped", GEMMA)):
                    size = compiled(name, CONSTANTS | constants | variant, capability)
                    print(name, number, head, capability, size)


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]])
