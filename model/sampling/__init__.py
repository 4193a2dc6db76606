"""Device code that turns logits into ids and log probabilities."""
