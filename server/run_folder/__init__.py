"""The run folder: everything that a run leaves behind.

``writer`` writes it, ``reader`` reads it, ``record`` has the form of a round in it, ``manifest`` what a restarted
server must know, ``checkpoints`` the states that a run can go on from. JSON has no NaN or infinity: such numbers are
written as null.
"""

from experiment import MODEL as MODEL

CONFIG, METRICS, SUMMARY, MANIFEST = "config.toml", "metrics.jsonl", "summary.json", "run.json"
CURVE, REPORT = "curve.png", "report.html"
BEST = "best.safetensors"
"""Names of the files, beside that of the model; ``BEST`` is a model too, of the round in the summary."""
