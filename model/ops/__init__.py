"""Pure functions of the forward pass: norms, activations and position encodings."""
