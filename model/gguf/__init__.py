"""GGUF files, llama.cpp's format: a checkpoint of one file with its architecture, tokenizer and chat template."""
