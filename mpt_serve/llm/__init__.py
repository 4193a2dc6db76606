"""The engine with text, for Python users."""

from mpt_serve.llm.completion import Choice, Completion, Piece
from mpt_serve.llm.embedding import Embedding
from mpt_serve.llm.llm import LLM

__all__ = ["LLM", "Choice", "Completion", "Embedding", "Piece"]
