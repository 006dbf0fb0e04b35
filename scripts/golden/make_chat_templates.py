#!/usr/bin/env python3
"""Writes tests/golden/chat_templates.json: what transformers renders for the templates below.

Needs transformers and jinja2 only here; the tests read the JSON. Run: make_chat_templates.py > chat_templates.json
"""

import json
import sys

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

CHAT = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "  Grüße, 世界 🎉 <b>&\"quotes\"</b>\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello!"},
    {"role": "user", "content": "And now?"},
]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather; °C, <now>",
        "parameters": {
            "type": "object",
            "properties": {"town": {"type": "string", "enum": ["Bern", "北京"]}, "days": {"type": "integer", "default": 1}},
            "required": ["town"],
        },
    },
}
CALL = [
    {"role": "user", "content": "Weather in Bern?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"town": "Bern", "days": 2}}},
            {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": {"town": "北京"}}},
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "12.5"},
    {"role": "tool", "tool_call_id": "c2", "content": "sunny"},
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "what?"}]}
]

HEADER_STYLE = """\
{{- bos_token }}
{%- if tools is not none and tools %}
    {%- set mode = "tools" %}
{%- else %}
    {%- set mode = "plain" %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}

{#- The system message comes first, where there is one. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\\n\\nMode: " + mode + "\\nToday: " + date_string + "\\n\\n" }}
{%- if mode == "tools" %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 and single_call %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- for call in message.tool_calls | map(attribute="function") %}
            {{- '{"name": "' + call.name + '", "parameters": ' }}
            {{- call.arguments | tojson }}
            {{- "}" ~ ("" if loop.last else ";") }}
        {%- endfor %}
        {{- "<|eot|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start|>ipython<|end|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""

CHATML_STYLE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

ONE_LINE_STYLE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='', is_first_sp=true) %}"
    "{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}"
    "{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}"
    "{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{ '<｜User｜>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}"
    "{%- for tool in message['tool_calls'] %}{%- if not ns.is_first %}"
    "{{ '<｜Assistant｜><｜calls｜>' + tool['type'] + '<｜sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' }}"
    "{{ tool['function']['arguments'] | tojson }}{{ '\\n' + '```' }}{%- set ns.is_first = true -%}{%- else %}"
    "{{ '\\n' + tool['type'] + '<｜sep｜>' + tool['function']['name'] }}{%- endif %}{%- endfor %}{{ '<｜end｜>' }}{%- endif %}"
    "{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{%- if ns.is_tool %}"
    "{{ '<｜outputs｜>' + message['content'] + '<｜end｜>' }}{%- set ns.is_tool = false -%}{%- else %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + content + '<｜end｜>' }}"
    "{%- endif %}{%- endif %}"
    "{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}"
    "{{ '<｜output｜>' + message['content'] }}{%- set ns.is_output_first = false %}{%- else %}"
    "{{ '\\n<｜output｜>' + message['content'] }}{%- endif %}{%- endif %}"
    "{%- endfor -%}{% if ns.is_tool %}{{ '<｜outputs_end｜>' }}{% endif %}"
    "{% if add_generation_prompt and not ns.is_tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"
)

INST_STYLE = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- Roles must alternate, calls and their results aside. #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool" %}
        {{- '[RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}[/RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""

MACRO_STYLE = """\
{%- macro render_content(content, strip=true) -%}
    {%- if content is string -%}
        {{- content | trim if strip else content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part['type'] == 'image' -%}
                {{- '<image>' -}}
            {%- elif part['type'] == 'text' -%}
                {{- part['text'] | trim -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro type_of(spec) -%}
    {%- if spec.enum %}{{ spec.enum | map("tojson") | join(" | ") }}{% else %}{{ spec.type | upper }}{% endif -%}
{%- endmacro -%}
{%- for tool in tools or [] -%}
    {{ tool.function.name }}(
    {%- for name, spec in tool.function.parameters.properties | dictsort -%}
        {{ name }}{{ "" if name in tool.function.parameters.required else "?" }}: {{ type_of(spec) }}
        {%- if not loop.last %}, {% endif -%}
    {%- endfor -%}
    ){{ "\\n" }}
{%- endfor -%}
{%- for message in messages -%}
    {%- set role = {"assistant": "model"}.get(message.role, message.role) -%}
    {{ "<turn>" ~ role ~ "\\n" ~ render_content(message.content, strip=role != "system") ~ "</turn>\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ "<turn>model\\n" }}
{%- endif -%}
"""

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
STYLES = {"header": HEADER_STYLE, "chatml": CHATML_STYLE, "one line": ONE_LINE_STYLE, "inst": INST_STYLE, "macro": MACRO_STYLE}
CONVERSATIONS = {
    "chat": {"messages": CHAT},
    "no prompt": {"messages": CHAT[:3], "add_generation_prompt": False},
    "call": {"messages": CALL, "tools": [WEATHER]},
    "two tools": {"messages": CALL[:1], "tools": [WEATHER, {**WEATHER, "extra": None}]},
}

VALUES = {
    "numbers": [0, -7, 2**53, 1.0, 0.1, -2.5e-7, 1e16, 123456789012345.6, 1e22],
    "text": "\u0000\u001f\b\f\t\"\\/\u007f é 😀 </script>'&",
    "nested": {"z": [], "a": {}, "m": [[1, [2]], {"k": None}], "b": [True, False]},
}

# name: template, or (template, variables)
SNIPPETS = {
    # White space
    "a block's newline goes": "a\n{% if true %}\nb\n{% endif %}\nc",
    "a block's indentation goes": "a\n    {% if true %}  \n    b\n    {% endif %}\nc\n",
    "text before a block stays": "a  {% if true %}b{% endif %}  \nc",
    "a comment's line goes": "a\n  {# gone #}\nb{# too #} c",
    "plus keeps": "a\n  {%+ if true %}b{% endif +%}\nc",
    "minus eats": "a \n\n {%- if true -%} \n b \n {%- endif -%} \n c",
    "variables keep newlines": "{{ 1 }}\n{{ 2 }}\n\n",
    "only the last newline goes": "a\n\n",
    "carriage returns": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n",
    "raw": "{% raw %}{{ a }} {% b %}{% endraw %}\n{{ '{{' }}",
    # Values as Python writes them
    "printed values": "{{ none }} {{ true }} {{ 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ -7 % 3 }} {{ missing }}.",
    "printed containers": "{{ nested }} {{ ['a', \"b'c\", 1.5, none] }} {{ {'k': (1, 2)} }}",
    "joined values": "{{ 1 ~ none ~ true ~ 'x' ~ [1, 'a'] }}",
    "concatenated literals": "{{ 'a' 'b' ~ 'c\\n\\t\\'\\u00e9' }}",
    # tojson
    "tojson": "{{ numbers | tojson }}\n{{ text | tojson }}\n{{ nested | tojson }}",
    "tojson indent": "{{ nested | tojson(indent=2) }}\n{{ numbers | tojson(indent=none) }}\n{{ [] | tojson(indent=4) }}",
    "tojson options": "{{ nested | tojson(sort_keys=true) }}{{ text | tojson(ensure_ascii=true) }}"
    "{{ nested | tojson(separators=(',', ':')) }}{{ nested | tojson(indent=1, separators=(' ;', ' = ')) }}",
    "tojson in text": "{{ 'x' + nested | tojson + 'y' }}{{ (nested | tojson) | length }}",
    # Python's methods
    "str methods": "{{ ' a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|"
    "{{ 'a-b-c'.split('-', 1) }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abc'.endswith('c') }}|{{ 'aXb'.lower().upper() }}|"
    "{{ 'a b'.title() }}|{{ 'aba'.replace('a', 'c') }}|{{ 'aba'.replace('a', 'c', 1) }}|{{ 'abcb'.find('b') }}|"
    "{{ 'abcb'.rfind('b') }}|{{ 'x'.join(['1', '2']) }}|{{ 'aba'.count('a') }}|{{ '12'.isdigit() }}|{{ 'a\nb'.splitlines() }}",
    "newer str methods": "{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('c') }}|{{ 'abc'.removeprefix('c') }}|"
    "{{ 'a.b.c'.rsplit('.', 1) | join('+') }}|{{ 'a.b'.partition('.') | join('+') }}|{{ 'ab'.partition('.') | join('+') }}|"
    "{{ 'a.b.c'.rpartition('.') | join('+') }}|{{ 'ab'.rpartition('.') | join('+') }}",
    "dict methods": "{% for k, v in nested.items() %}{{ k }}={{ v }};{% endfor %}{{ nested.get('q') }}|{{ nested.get('q', 1) }}|"
    "{{ nested.keys() | list }}|{{ nested.values() | list | length }}|{{ 'z' in nested }}|{{ nested | items | list | length }}",
    "slices": "{{ text[-3:] | length }}{{ 'abc'[0] }}{{ 'abc'[::-1] }}{{ [1, 2, 3][1:] }}{{ numbers[1] }}{{ 'äöü'[1:] }}",
    # Control
    "loop": "{% for m in messages %}{{ loop.index }}{{ loop.first }}{{ loop.revindex0 }}{{ loop.previtem.role if loop.previtem is defined }}"
    "{{ loop.nextitem.role if not loop.last }}{{ loop.cycle('a', 'b') }};{% else %}none{% endfor %}",
    "break and continue": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "filtered loop": "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }} {% endfor %}",
    "namespace": "{% set ns = namespace(n=0, seen=[]) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.seen = ns.seen + [m.role] %}{% endfor %}{{ ns.n }}{{ ns.seen | join(',') }}",
    "loop scope": "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}",
    "set block": "{% set x %}\n  a{{ 1 }}\n{% endset %}[{{ x }}]{% set a, b = 1, 2 %}{{ a + b }}",
    "generation": "{% for m in messages %}\n{% if m.role == 'assistant' %}\n  {%- generation -%}\n{{ m.content }}{% set x = 1 %}\n"
    "  {% endgeneration %}\n{% endif %}\n{% endfor %}{{ x is defined }}",
    "macro and call": "{% macro m(a, b='-') %}[{{ a }}{{ b }}{{ caller() if caller }}]{% endmacro %}{{ m(1) }}{{ m(1, b=2) }}"
    "{% call m(3) %}in{% endcall %}{% filter upper %}low{% endfilter %}",
    # Undefined and tests
    "undefined": "{{ missing }}|{{ missing is defined }}|{{ 'y' if missing else 'n' }}|{{ messages[0].nope is none }}|"
    "{{ messages[0]['nope'] is defined }}|{{ missing | default('d') }}|{{ none | default('d', true) }}|{{ missing == none }}|"
    "{% for x in missing %}x{% endfor %}|{{ 1 if false }}|{{ messages[99] is defined }}",
    "tests": "{{ 'a' is string }}{{ 'a' is iterable }}{{ 'a' is sequence }}{{ nested is mapping }}{{ [] is iterable }}{{ 1 is number }}"
    "{{ true is boolean }}{{ true is true }}{{ 1 is true }}{{ 1.5 is float }}{{ 1 is integer }}{{ none is none }}{{ 3 is odd }}"
    "{{ 4 is divisibleby 2 }}{{ 1 is in [1, 2] }}{{ 'a' is eq 'a' }}{{ 'A' is upper }}{{ nested is iterable }}{{ true is number }}{{ none is iterable }}"
    "{{ none is sequence }}{{ [] is sequence }}{{ missing is sequence }}{{ missing is iterable }}{{ 7 is iterable }}",
    "filters": "{{ messages | map(attribute='role') | unique | list }}{{ messages | rejectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | selectattr('role', 'in', ['user']) | map(attribute='content') | first }}{{ [3, 1, 2] | sort | last }}"
    "{{ [1, 2] | sum }}{{ 'a b' | replace(' ', '_') | capitalize }}{{ 'x\ny' | indent(2) }}{{ '3' | int + 1 }}{{ 'q' | int(7) }}"
    "{{ '1.50' | float }}{{ 3.7 | int }}{{ [1, 2, 3] | batch(2) | list }}{{ nested | length }}{{ 'abc' | list }}{{ -3 | abs }}"
    "{{ 2.567 | round(1) }}{{ ['b', 'A'] | sort }}{{ [1, 2] | min }}{{ '%s-%d' | format('a', 3) }}{{ 'a' | e }}{{ '<' | safe }}",
    "operators": "{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ 'a' not in ['b'] }}{{ not 1 == 2 }}{{ 1 == 1.0 }}{{ [1] + [2] }}{{ 'a' * 3 }}"
    "{{ (1 if true else 2) + 3 }}{{ 'a' < 'b' }}{{ 1 == true }}{{ [] == () }}{{ none == false }}",
    "and, or, else": "{{ true and 'x' }}{{ '' or 'd' }}{{ none or 0 }}{{ 'a' if missing else 'b' if false else 'c' }}{{ not true or true }}",
    "a macro in itself": "{% macro m(d) %}{% for k, v in d.items() %}{{ k }}:{{ m(v) if v is mapping else v }};{% endfor %}{% endmacro %}"
    "{{ m({'a': {'b': 1}, 'c': 2}) }}",
    "dict and globals": "{{ dict(a=1, b='x') }}{{ range(3) | list }}{{ range(1, 7, 3) | list }}{% set j = joiner(',') %}{{ j() }}1{{ j() }}2",
    "strftime_now": "{{ strftime_now('plain %% text') }}{{ strftime_now('') }}{{ strftime_now('%Y') | length }}",
    "reasoning's names": (
        "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}",
        {"messages": [{"role": "assistant", "reasoning": "r"}, {"role": "assistant", "thinking": "t", "reasoning_content": None}]},
    ),
    "parts": ("{% for m in messages %}{% for c in m.content if c.type == 'text' %}{{ c.text }}{% endfor %}{% endfor %}", {"messages": PARTS}),
    "tools are none": "{{ tools is defined }}{{ tools is none }}{{ documents is none }}",
    # What ends in an error
    "raise": "{% if messages[0].role != 'user' %}\n{{ raise_exception('The first message must be the user\\'s: ' + messages[0].role) }}{% endif %}",
    "raise in a macro": "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}",
}


def case(name, template, **variables):
    variables = {"messages": CHAT, "add_generation_prompt": True, **variables}
    result = {"name": name, "template": template, "variables": variables}
    arguments = dict(variables)
    try:
        rendered, _ = render_jinja_template([arguments.pop("messages")], chat_template=template, **arguments)
        result["expected"] = rendered[0]
    except jinja2.exceptions.TemplateError as error:
        result["raises"] = str(error)
    return result


def cases():
    for style, template in STYLES.items():
        for conversation, variables in CONVERSATIONS.items():
            yield case(f"{style}: {conversation}", template, **TOKENS, **variables)
    yield case("header: date", HEADER_STYLE, **TOKENS, date_string="1 Jan 2031")
    yield case("header: single call", HEADER_STYLE, **TOKENS, messages=CALL, single_call=True)
    yield case("chatml: no thinking", CHATML_STYLE, enable_thinking=False)
    yield case("chatml: ends thinking", CHATML_STYLE, messages=CHAT[:3])
    yield case("inst: out of turn", INST_STYLE, **TOKENS, messages=CHAT[1:2] + CHAT[1:2])
    yield case("macro: parts", MACRO_STYLE, messages=PARTS)
    for name, snippet in SNIPPETS.items():
        template, variables = snippet if isinstance(snippet, tuple) else (snippet, {})
        yield case(name, template, **VALUES, **variables)


json.dump(
    {"made_with": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}", "cases": list(cases())},
    sys.stdout,
    ensure_ascii=False,
    indent=1,
)
print()
