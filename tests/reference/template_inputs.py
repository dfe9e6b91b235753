"""Conversations, templates and model directories for the chat reference: shared by make_templates.py and the tests."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
PUBLISHED = ("qwen25", "qwen3", "mllama", "llava")
# llava-1.5 exists with three ways of writing the space before a text: a normalizer, and two schemes of Metaspace.
FAMILIES = (*PUBLISHED, "llama3", "llava_first", "llava_always", "mistral")
PARTS_ONLY = ("llava", "llava_first", "llava_always")  # the template renders lists of parts and drops strings
DATE = "26 Jul 2024"
ANSWER = "Noonan syndrome, most likely."


def user(text: str, images: int = 0) -> dict:
    parts = [*[{"type": "image"}] * images, {"type": "text", "text": text}]
    return {"role": "user", "content": parts if images else text}


SYSTEM = {"role": "system", "content": "You are a geneticist.\nAnswer in one line."}
TURN = [user("Which syndrome is it?"), {"role": "assistant", "content": "Turner syndrome."}, user("Are you sure?")]
CONVERSATIONS = {
    "question": TURN[:1],
    "system": [SYSTEM, TURN[0]],
    "turns": TURN,
    "system_turns": [SYSTEM, *TURN],
    "image": [user("What is shown?", 1)],
    "two_images": [user("Which of them is abnormal?", 2)],
    "image_turns": [user("What is shown?", 1), TURN[1], TURN[2]],
    "spaces": [user("  two  before, one tab and a line after \t\n")],
    "unicode": [user("Größe 3 µm, 症候群 😀 e\u0301 \u00a0x")],
    "numbers": [user("Aged 1234567 days: p<0.05, [1] (see <b>) -- I/II?")],
    "empty": [user("")],
}
# What a family does not take: its template raises an error, or its tokenizer has no token for images.
REFUSED = {("mistral", name) for name in CONVERSATIONS if "system" in name}
REFUSED |= {("llama3", name) for name in CONVERSATIONS if "image" in name}

MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system message') }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}{{ '[INST] ' }}"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{{ '<image>\\n' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endif %}{{ ' [/INST]' }}{% endif %}"
    "{% endfor %}"
)

# Templates with the constructs of the published ones: Llama 3.1 and 3.2 (the date, tools, builtin tools, trim),
# SmolLM2 (ChatML with a default system message) and others of the hub (namespace, loop controls, macros, tojson).
CONSTRUCTS = {
    "llama": """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "unknown" %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set first = messages[0] %}
{%- if first['role'] == 'system' %}
    {%- set head, messages = first['content'] | trim, messages[1:] %}
{%- else %}
    {%- set head = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" + head + "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}{{- tools | tojson(indent=4) }}{%- endif %}

{#- A comment that takes its line with it #}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif not message.tool_calls | length == 1 %}
        {{- raise_exception("one call at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "chatml": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nAnswer as a doctor would<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "controls": """{% set ns = namespace(count=0, asked=false) %}
{%- macro turn(message) %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endmacro %}
{%- for message in messages -%}
    {%- if message.content is string and not message.content | trim -%}{%- continue -%}{%- endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- if message.role == 'user' -%}{%- set ns.asked = true -%}{%- endif -%}
    {{ turn(message) }}
    {%- if loop.index > 9 -%}{%- break -%}{%- endif -%}
{%- endfor %}
{{ ({'turns': ns.count, 'asked': ns.asked, 'ü': none}) | tojson(ensure_ascii=false, sort_keys=true) }}
  {% generation %}
{{ '|' if tools is none and documents is none }}{{ strftime_now('%Y-%m-%d') }}
  {% endgeneration %}
{{ '<|im_start|>assistant\n' if add_generation_prompt }}""",
}
NAMES = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
CONTROL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>")
TEXT_CONVERSATIONS = [name for name in CONVERSATIONS if "image" not in name]


def as_parts(messages: list[dict]) -> list[dict]:
    """The same messages with every string as a list of one text part."""
    return [
        {**m, "content": [{"type": "text", "text": m["content"]}] if isinstance(m["content"], str) else m["content"]}
        for m in messages
    ]


def model_dir(family: str, published: Path, out: Path) -> Path:
    """The tokenizer, template and processor files of a family, in ``out``.

    published: the folder ``published_dirs``; the folder ``tokenizers`` lies beside it.
    """
    tokenizers = published.parent / "tokenizers"
    source = {"mistral": published / "llavamed", "llama3": tokenizers / "llama3_2_vision"}
    vocabulary = {"qwen3": published / "qwen25", "llama3": tokenizers / "llama3"}
    source = source.get(family, published / family.partition("_")[0])
    out.mkdir()
    for path in source.glob("*.json"):
        shutil.copyfile(path, out / path.name)
    text = gzip.decompress((vocabulary.get(family, source) / "tokenizer.json.gz").read_bytes())
    (out / "tokenizer.json").write_bytes(text)
    if family in (*PUBLISHED, "llama3"):
        return out
    content = json.loads(text)
    if family in ("llava_first", "llava_always"):
        scheme = family.partition("_")[2]
        content["normalizer"] = None
        content["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    if family == "mistral":
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        content["added_tokens"].append({"id": 32000, "content": "<image>", **flags, "special": True})
        settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": MISTRAL}
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        (out / "tokenizer_config.json").write_text(json.dumps(settings))
    (out / "tokenizer.json").write_text(json.dumps(content))
    return out
