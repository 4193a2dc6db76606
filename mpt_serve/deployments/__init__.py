"""The three Serve deployments: Ingress (HTTP), Tokenizer (text to ids) and Generator (the model)."""
