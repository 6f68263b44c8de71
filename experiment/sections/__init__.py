"""The sections of a config that say which method runs: what all share, and one class for each method."""
