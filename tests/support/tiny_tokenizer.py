"""A tiny tokenizer, trained when it is called: byte-level BPE with ChatML, like SmolLM2's except for its size."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SENTENCES = (
    "How many apples does the farmer have? The farmer has 12 apples and sells 5 of them.",
    "user system assistant answer: the price is 3 dollars, so the total price is 36 dollars.",
    "She works for 6 days every week and sells the rest of the apples.\n#### 42",
)


def tiny_tokenizer(
    folder: str | Path | None = None, *, chat_template: str | None = CHATML, trim_offsets: bool = False
) -> PreTrainedTokenizerFast:
    """About 350 tokens; padding, end of sequence and end of turn are one token. Saved where a folder is named.

    `trim_offsets`: offsets leave out white space at a token's ends, as Llama 3's post-processor has it.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=350,
            show_progress=False,
            special_tokens=["<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = chat_template
    # Here and not before: the wrapper puts a post-processor of its own in place of the backend's.
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    if folder is not None:
        tokenizer.save_pretrained(folder)
    return tokenizer
