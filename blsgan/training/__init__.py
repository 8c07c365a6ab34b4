"""Training: pairs with a known truth, losses, the loop, checkpoints and presets."""

# The names in a run's folder; they can be had without torch.
CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
