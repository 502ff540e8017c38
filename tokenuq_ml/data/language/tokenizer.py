"""The tokenizer of a synthetic language: one token per word, and a chat template of three marks.

Does not import torch.
"""

from typing import TYPE_CHECKING

from tokenuq_ml.data.language.words import ASSISTANT, END, PAD, UNKNOWN, USER, Words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for message in messages %}"
    f"{{{{ ('{USER}' if message['role'] == 'user' else '{ASSISTANT}') + message['content'] }}}}"
    f"{{% if message['role'] == 'assistant' %}}{END}{{% endif %}}"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def word_tokenizer(words: Words) -> "PreTrainedTokenizerFast":
    """Return a tokenizer whose ids are the places of words in `Words.vocabulary`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(words.vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
