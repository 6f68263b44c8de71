"""One experiment: its config, the loaded task that belongs to it, and what `breakwater check` reports."""
