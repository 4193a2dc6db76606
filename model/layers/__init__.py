"""The forward pass: layers, whole sequences and paged steps."""
