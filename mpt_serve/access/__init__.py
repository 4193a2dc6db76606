"""API keys, what their owners may do, and how much of it."""
