"""Structured outputs: text that must match a JSON Schema, a regular expression, a choice or a grammar."""
