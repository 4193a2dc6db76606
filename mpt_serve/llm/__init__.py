"""The engine with text, for Python users."""
