"""Training of the embedded demonstration model: corpus generator, tokenizer, optimiser, evaluation and export."""
