"""Small tokenizers, one for each way of spelling bytes."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE of 256 bytes, a special token and an added token outside the byte alphabet."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    tokenizer.add_tokens([AddedToken("  ", special=False)])
    return tokenizer


def metaspace_tokenizer() -> Tokenizer:
    """A SentencePiece-like unigram that marks the beginning of a text with a space."""
    pieces = ["<unk>", "\u2581", "\u2581Hello", "\u2581wor", "ld", "a", "b", "é", "\u2581a", ".", "\u2581\u2581"]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """A Llama-like BPE: spaces become visible, and unknown characters fall back to their bytes."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581a", "é"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("\u2581", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


TOY_TOKENIZERS = {
    "byte level": byte_level_tokenizer,
    "metaspace": metaspace_tokenizer,
    "byte fallback": byte_fallback_tokenizer,
}
