"""Chat templates of published models, written from their structure."""
# ruff: noqa: E501

QWEN3 = r"""
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
"""Qwen3: no reasoning in earlier answers, an empty think block in a last one that has none."""

R1_DISTILL = r"""
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {%- set content = message['content'] -%}
        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif -%}
        {{- '<|Assistant|>' + content + '<|im_end|>' -}}
    {%- else -%}
        {{- '<|User|>' + message['content'] -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\n' }}{%- endif -%}
"""
"""Distilled R1: generation prompts open a think block, and no answer is rendered with its own."""

PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Phi-3: the text ends with another token, which generation prompts do not have."""

OPENS_THINK = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
"""Generation prompts open a think block, and answers are rendered as they are."""

LATE_SYSTEM = r"""
{%- if messages[0]['role'] == 'system' -%}
    {%- set system, turns = messages[0]['content'] + '\n\n', messages[1:] -%}
{%- else -%}
    {%- set system, turns = '', messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for m in turns -%}
    {%- if m['role'] == 'user' -%}
        {%- if (turns | length) - loop.index0 <= 2 -%}
            {{- '[INST] ' + system + m['content'] + '[/INST]' -}}
        {%- else -%}
            {{- '[INST] ' + m['content'] + '[/INST]' -}}
        {%- endif -%}
    {%- else -%}
        {{- ' ' + m['content'] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
"""
"""Mistral's first ones: the system's text is in the last question, wherever the conversation ends."""

TRIMMED_TOOLS = r"""
{%- for m in messages -%}
    {{- '<|im_start|>' + m['role'] + '\n\n' + m['content'] | trim -}}
    {%- if m['role'] == 'assistant' and m['tool_calls'] is defined -%}
        {%- if m['tool_calls'] | length > 1 %}{{ raise_exception('one tool call at a time') }}{% endif -%}
        {{- m['tool_calls'][0].function | tojson -}}
    {%- endif -%}
    {{- '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n\n' }}{%- endif -%}
"""
"""Like Llama 3's: headers end in two line breaks, texts are trimmed, and a turn has one tool call at most."""

GPT_OSS = r"""
{{- '<|start|>system<|message|>You are ChatGPT.<|end|>' -}}
{%- if messages[0].role == 'developer' or messages[0].role == 'system' -%}
    {%- set developer_message, loop_messages = messages[0].content, messages[1:] -%}
{%- else -%}
    {%- set developer_message, loop_messages = '', messages -%}
{%- endif -%}
{%- if developer_message -%}
    {{- '<|start|>developer<|message|># Instructions\n\n' + developer_message + '\n\n<|end|>' -}}
{%- endif -%}
{%- set last_tool_call = namespace(name=none) -%}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {%- if "tool_calls" in message -%}
            {%- set future = namespace(found=false) -%}
            {%- for later in loop_messages[loop.index:] -%}
                {%- if later.role == 'assistant' and "tool_calls" not in later -%}{%- set future.found = true -%}{%- endif -%}
            {%- endfor -%}
            {%- set tool_call = message.tool_calls[0].function -%}
            {%- if message.content and message.thinking -%}
                {{- raise_exception("Cannot pass both content and thinking in an assistant message with tool calls!") -}}
            {%- elif message.content and not future.found -%}
                {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.content + '<|end|>' -}}
            {%- elif message.thinking and not future.found -%}
                {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
            {%- endif -%}
            {{- '<|start|>assistant to=functions.' + tool_call.name + '<|channel|>commentary json<|message|>' + tool_call.arguments | tojson + '<|call|>' -}}
            {%- set last_tool_call.name = tool_call.name -%}
        {%- elif loop.last and not add_generation_prompt -%}
            {%- if "thinking" in message -%}
                {{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' -}}
            {%- endif -%}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' -}}
        {%- else -%}
            {{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' -}}
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {{- '<|start|>functions.' + last_tool_call.name + ' to=assistant<|channel|>commentary<|message|>' + message.content | tojson + '<|end|>' -}}
    {%- elif message.role == 'user' -%}
        {{- '<|start|>user<|message|>' + message.content + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
"""gpt-oss, without its tools: reasoning is `thinking`, and only that of a last answer, or of a call without one, is rendered."""
GPT_OSS_TOKENS = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"]
