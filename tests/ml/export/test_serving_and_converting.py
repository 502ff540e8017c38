"""The command for vLLM, and llama.cpp's converter: what is run, what is refused, and with which remedy."""

import json

import pytest

from tokenuq_ml.errors import InputError
from tokenuq_ml.export import llama_cpp
from tokenuq_ml.export.vllm_serving import serving

LORA = {"peft_type": "LORA", "r": 12, "bias": "none", "use_dora": False, "modules_to_save": None}


def adapter(folder, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(LORA | settings))
    return folder


def test_a_lora_adapter_is_served_on_its_base_with_the_next_allowed_rank(tmp_path):
    weights = adapter(tmp_path / "adapter")
    found = serving(tmp_path / "base", weights, "study/mle", None)
    assert found.arguments == (
        *("vllm", "serve", str(tmp_path / "base"), "--enable-lora", "--max-lora-rank", "16"),
        *("--lora-modules", f"study-mle={weights}"),
    )
    assert found.model == "study-mle"


def test_full_fine_tuning_is_served_with_the_tokenizer_of_its_base(tmp_path):
    found = serving(tmp_path / "base", tmp_path, "study/mle", None)
    assert found.arguments[:3] == ("vllm", "serve", str(tmp_path))
    assert found.arguments[found.arguments.index("--tokenizer") + 1] == str(tmp_path / "base")


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: lm_head"),
        ({"bias": "all"}, "bias: all"),
        ({"r": 1024}, "its rank is 1024, and 512 is the largest"),
        ({"rank_pattern": {"q_proj": 4}}, "it sets rank_pattern"),
        ({"peft_type": "IA3"}, "its kind is IA3"),
    ],
)
def test_what_vllm_does_not_take_is_refused_with_the_remedy(tmp_path, settings, named):
    with pytest.raises(InputError, match=f"{named}.*tokenuq export study/mle --merge DIR"):
        serving(tmp_path, adapter(tmp_path / "adapter", **settings), "study/mle", None)


def test_an_adapter_of_a_quantised_base_is_refused(tmp_path):
    with pytest.raises(InputError, match="quantised to nf4, which vLLM would quantise in its own way"):
        serving(tmp_path, adapter(tmp_path / "adapter"), "study/mle", "nf4")


def script(folder, code):
    path = folder / llama_cpp.SCRIPT
    path.write_text(code)
    path.chmod(0o755)
    return path


def test_the_converter_is_that_of_the_variable_or_on_the_path(tmp_path):
    path = script(tmp_path, "#!/usr/bin/env python\n")
    assert llama_cpp.converter({"LLAMA_CPP": str(tmp_path)}) == path
    assert llama_cpp.converter({"LLAMA_CPP": str(path)}) == path
    assert llama_cpp.converter({"PATH": str(tmp_path)}) == path
    assert llama_cpp.converter({"PATH": str(tmp_path / "empty")}) is None
    with pytest.raises(InputError, match="LLAMA_CPP: .*empty is no checkout of llama.cpp"):
        llama_cpp.converter({"LLAMA_CPP": str(tmp_path / "empty")})


def test_the_converter_gets_the_dtype_and_its_failure_is_told(tmp_path):
    path = script(tmp_path, "import sys\nopen(sys.argv[3], 'w').write(' '.join(sys.argv[1:]))\n")
    llama_cpp.convert(path, tmp_path, tmp_path / "x.gguf", "bfloat16")
    assert (tmp_path / "x.gguf").read_text() == f"{tmp_path} --outfile {tmp_path / 'x.gguf'} --outtype bf16"
    script(tmp_path, "import sys\nsys.exit('Model FooForCausalLM is not supported')\n")
    with pytest.raises(InputError, match="exit code 1: Model FooForCausalLM is not supported; .*unset LLAMA_CPP"):
        llama_cpp.convert(path, tmp_path, tmp_path / "y.gguf", "float16")
    script(tmp_path, "print('nothing to do')\n")
    with pytest.raises(InputError, match="wrote no file: nothing to do"):
        llama_cpp.convert(path, tmp_path, tmp_path / "y.gguf", "float16")
