"""One experiment: its config, the loaded task that belongs to it, and what `breakwater check` reports."""

MODEL = "model.safetensors"
"""Name of the model's file in a run folder."""
