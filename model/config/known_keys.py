"""Keys of published configs that do not change inference, listed by name so that no key is ignored by default."""

from typing import Final

# Bookkeeping, initialisation and training; dropout is the identity at inference. `auto_map` names Python files of a
# checkpoint, which are never executed: the keys that are read decide everything that they would do.
MODEL_KEYS: Final = frozenset(
    {
        "_name_or_path", "architectures", "auto_map", "transformers_version", "tokenizer_name", "name", "verbose",
        "init_device", "init_config", "init_std", "init_nonlinearity", "init_div_is_residual", "init_gain",
        "param_init_fn", "emb_init_std", "emb_init_uniform_lim", "initializer_range", "fan_mode",
        "emb_pdrop", "resid_pdrop", "embedding_fraction", "use_cache", "use_pad_tok_in_ffn", "fc_type",
        "loss_fn", "is_decoder", "task_specific_params", "problem_type", "id2label", "label2id",
        "output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_bfloat16",
        "chunk_size_feed_forward", "cross_attention_hidden_size", "tie_encoder_decoder",
        "finetuning_task", "prefix", "decoder_start_token_id", "sep_token_id", "tf_legacy_loss", "tokenizer_class",
        "use_return_dict", "torch_dtype", "dtype", "model_max_length", "attn_implementation", "_attn_implementation",
        "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
        "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty",
        "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences",
        "output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id",
        "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens",
        "unk_token_id", "use_flash_attention", "_commit_hash", "_attn_implementation_autoset",
    }
)  # fmt: skip

# `attn_impl` chooses among equivalent kernels; `attn_uses_sequence_id` concerns packed training batches alone. The
# others are what transformers writes into every section, beside `MODEL_KEYS`.
ATTENTION_KEYS: Final = frozenset(
    {
        "attn_pdrop", "attn_impl", "attn_uses_sequence_id", "fc_type",
        "model_type", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
    }
)  # fmt: skip

# How the layer is made for training, not what it computes.
FFN_KEYS: Final = frozenset({"fc_type", "device"})
