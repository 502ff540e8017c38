"""Chat templates and conversations for tests of tokenisation."""

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m['role'] + ']\n\n' + m['content'] | trim + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role\nnot supported') }}"
    "{% endif %}{{ '<t>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<t>model\n' }}{% endif %}"
)
FORGETFUL = (
    "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}{{ '[' + m['role'] + ']' + m['content'] "
    "+ '<|im_end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)

SHORT = [{"role": "user", "content": "How many apples?"}, {"role": "assistant", "content": "12 apples."}]
LONG = [
    {"role": "system", "content": "Answer."},
    *SHORT,
    {"role": "user", "content": "12 apples."},
    {"role": "assistant", "content": "The price\n\n is  3 \n🍎 é x   \n y"},
]
AWKWARD = [{"role": "user", "content": "x"}, {"role": "assistant", "content": " a  <|im_end|> b\n"}]


def spoken(tokenizer, tokens) -> list[str]:
    """Text of each run of response tokens."""
    runs, run = [], []
    for token, scored in [*zip(tokens.input_ids, tokens.response_mask, strict=True), (None, False)]:
        if scored:
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return runs


def with_template(tokenizer, template):
    tokenizer.chat_template = template
    return tokenizer
