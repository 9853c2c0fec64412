"""Templates of answers as models bring them, and what such models say."""

from typing import Any

OF_CALLS = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
JSON_CALLS: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|eot_id\|>)"},
    },
}
TAGGED: dict[str, Any] = {
    "start_anchor_pattern": r"<\|im_start\|>assistant\s",
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"
            },
            "transform": OF_CALLS,
        },
        "content": {"close_pattern": r"\s*<\|im_end\|>"},
    },
}
QUOTED: dict[str, Any] = {
    "start_anchor": ["<|turn>model\n", "<tool_response|>"],
    "fields": {
        "reasoning": {"open": "<|channel>thought\n", "close": "<channel|>"},
        "tool_calls": {
            "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
            "close": "<tool_call|>",
            "repeats": True,
            "content": "json",
            "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            "transform": OF_CALLS,
        },
        "content": {"close": ["<turn|>", "<|tool_response>", "<eos>"]},
    },
}
LISTED: dict[str, Any] = {
    "start_anchor": "[/INST]",
    "fields": {
        "tool_calls": {
            "open": "[CALLS]",
            "close": ["\n", "\n\n"],
            "content": "json",
            "transform": {"function": {"name": "{tool}", "arguments": "{with.all}"}},
            "transform_each": True,
        },
        "content": {"open": "[SAY]", "close": "[/SAY]", "repeats": True, "join": " / "},
    },
}
LINES: dict[str, Any] = {
    "start_anchor": "assistant:",
    "fields": {
        "tool_calls": {
            "open_pattern": r"@(?P<name>\w+)\n",
            "close": "@end",
            "repeats": True,
            "content": "kv-lines",
            "content_args": {"kv_sep": "="},
            "transform": OF_CALLS,
        },
        "content": {"close": "<eos>", "content_args": {"strip": False}},
    },
}
EXAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "json": (
        JSON_CALLS,
        "<think>\nHm. </think>\n\nSure.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris <b> é", "days": 3}}\n</tool_call>\n'
        '<tool_call>{"name": "now", "arguments": {}}</tool_call><|im_end|>',
    ),
    "tagged": (
        TAGGED,
        "<think>Hm.</think>Sure. <tool_call>\n<function=get_weather>\n<parameter=city>\nParis <b> é\n</parameter>"
        "\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call><function=now></function></tool_call>\n<|im_end|>",
    ),
    "quoted": (
        QUOTED,
        "<|channel>thought\nHm.<channel|>Sure.<|tool_call>call:get_weather{city:"
        '<|"|>Paris <b> é<|"|>,days:3}<tool_call|>'
        "<|tool_call>call:now{}<tool_call|><turn|>",
    ),
    "listed": (
        LISTED,
        '[SAY]Sure.[/SAY][CALLS] [{"tool": "get_weather", "with": {"all": {"city": "Paris <b> é", "days": 3}}}, '
        '{"tool": "now", "with": {"all": {}}}]\n\n',
    ),
    "lines": (LINES, "Sure.@get_weather\ncity=Paris <b> é\ndays = 3\n@end@now\n@end<eos>"),
}
