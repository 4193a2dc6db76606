"""Read and check `config.json` of every MPT release."""
