"""The ServerApp, written for FedAvg; only the strategy is new."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from breakwater import RobustFedAvg
from pytorch_digits.task import Net, load_test_data, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and save the model."""
    config = context.run_config
    clients, fraction_evaluate = int(config["clients"]), float(config["fraction-evaluate"])
    torch.manual_seed(int(config["seed"]))
    strategy: Strategy
    if config["robust"]:
        strategy = RobustFedAvg(
            clients, int(config["byzantine"]), fraction_evaluate=fraction_evaluate, seed=int(config["seed"])
        )
    else:
        strategy = FedAvg(fraction_evaluate=fraction_evaluate, min_available_nodes=clients)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        train_config=ConfigRecord({"lr": float(config["learning-rate"])}),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=global_evaluate,
    )
    if config["out"]:
        folder = Path(str(config["out"]))
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(result.arrays.to_torch_state_dict(), folder / "final_model.pt")
        curves = {
            "accuracy": [metrics["accuracy"] for metrics in result.evaluate_metrics_serverapp.values()],
            "clients": [metrics["eval_acc"] for metrics in result.evaluate_metrics_clientapp.values()],
        }
        (folder / "summary.json").write_text(json.dumps(curves), encoding="utf-8")


def global_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Measure the model on the server's images."""
    net = Net()
    net.load_state_dict(arrays.to_torch_state_dict())
    loss, accuracy = test(net, load_test_data())
    return MetricRecord({"accuracy": accuracy, "loss": loss})
