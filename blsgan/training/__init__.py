"""Training: pairs with a known truth, losses, the loop, checkpoints and presets."""
