"""The ServerApp, written for FedAvg; only the strategy is new."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from breakwater import RobustFedAvg
from digits_app.task import accuracy, load_record, new_model, to_record

app = ServerApp()


def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Return the accuracy of the model after a round."""
    return MetricRecord({"accuracy": accuracy(load_record(new_model(), arrays))})


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and record the accuracy of each round."""
    config = context.run_config
    clients, fraction = int(config["clients"]), float(config["fraction-train"])
    strategy: Strategy
    if config["robust"]:
        strategy = RobustFedAvg(
            clients, int(config["byzantine"]), fraction_train=fraction, fraction_evaluate=0.0, seed=int(config["seed"])
        )
    else:
        strategy = FedAvg(fraction_train=fraction, fraction_evaluate=0.0, min_available_nodes=clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=to_record(new_model()),
        num_rounds=int(config["rounds"]),
        train_config=ConfigRecord({"lr": float(config["lr"]), "local-epochs": int(config["local-epochs"])}),
        evaluate_fn=measure,
    )
    curve = [metrics["accuracy"] for metrics in result.evaluate_metrics_serverapp.values()]
    print(f"accuracy after {len(curve) - 1} rounds: {curve[-1]:.3f}")
    if config["out"]:
        folder = Path(str(config["out"]))
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "model.npz", **{name: array.numpy() for name, array in result.arrays.items()})
        (folder / "summary.json").write_text(json.dumps({"accuracy": curve}), encoding="utf-8")
