"""Chat templates that have a name, for tokenizers that come with none.

They are Jinja, as those of Hugging Face tokenizers are, and are exported as such.
"""

_NO_TOOLS = (
    "{% if message.tool_calls %}"
    "{{ raise_exception('this template has no tool calls') }}"
    "{% endif %}"
)
_EACH = "{% for message in messages %}" + _NO_TOOLS
_END = "{% endfor %}{% if add_generation_prompt %}"

# Of those whose marks are special tokens, where a vocabulary has them.
MARKS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
}
NAMED_TEMPLATES = {
    # of OpenAI's ChatML, as Qwen and SmolLM write it
    "chatml": (
        _EACH + "{{ '<|im_start|>' + message.role + '\\n' }}"
        "{{ message.content + '<|im_end|>\\n' }}"
        + _END
        + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # of Llama 3 Instruct, without its tools and dates
    "llama3": (
        "{{ bos_token }}" + _EACH + "{{ '<|start_header_id|>' + message.role }}"
        "{{ '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}"
        + _END
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    # of Zephyr (Tunstall et al. 2023)
    "zephyr": (
        _EACH + "{{ '<|' + message.role + '|>\\n' }}"
        "{{ message.content + eos_token + '\\n' }}"
        + _END
        + "{{ '<|assistant|>\\n' }}{% endif %}"
    ),
    # without tokens of its own: for any tokenizer that has an end of text
    "plain": (
        "{{ bos_token }}" + _EACH + "{% if message.role == 'assistant' %}"
        "{{ 'Assistant: ' + message.content + eos_token + '\\n\\n' }}"
        "{% elif message.role == 'system' %}"
        "{{ message.content + '\\n\\n' }}"
        "{% else %}"
        "{{ message.role | capitalize + ': ' + message.content + '\\n\\n' }}"
        "{% endif %}" + _END + "{{ 'Assistant:' }}{% endif %}"
    ),
}
