"""Between text and token ids: tokenizers, chat templates, incremental text with stop strings.

Knows files and text only: no model, no torch, no request.
"""
