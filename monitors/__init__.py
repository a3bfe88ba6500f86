"""What the inference table says about a model, and what to do about it."""
