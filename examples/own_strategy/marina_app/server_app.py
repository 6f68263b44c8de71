"""The ServerApp: RobustStrategy for this app's nodes, with a method, a rule and a compressor of Breakwater."""

import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from breakwater import AppStrategy
from marina_app.loss import DIM, Loss, data, method

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and record the loss."""
    config = context.run_config
    loss = Loss(*data())

    def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"loss": loss.value(arrays["x"].numpy())})

    strategy = AppStrategy(
        method(config), clients=int(config["clients"]), byzantine=int(config["byzantine"]), seed=int(config["seed"])
    )
    initial = ArrayRecord({"x": Array(np.zeros(DIM))})
    result = strategy.start(grid, initial, num_rounds=int(config["rounds"]), evaluate_fn=measure)
    curve = [metrics["loss"] for metrics in result.evaluate_metrics_serverapp.values()]
    print(f"loss {curve[0]:.3f} -> {curve[-1]:.3f} after {len(curve) - 1} rounds")
    if config["out"]:
        folder = Path(str(config["out"]))
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "model.npz", x=result.arrays["x"].numpy())
        (folder / "summary.json").write_text(json.dumps({"loss": curve}), encoding="utf-8")
