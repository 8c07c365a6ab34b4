"""How well layers are separated: metrics, closed-form baselines, and the one protocol for both."""
