"""Commands that use a fitted head or a fine-tuned network."""
