"""ByzFL's own training loop (its ``benchmark/train.py``) on the job of ``simulation.py``; prints the ms of a round.

    PYTHON -m benchmarks.byzfl_loop ROUNDS

PYTHON is one that has ``byzfl``; nothing of ours but ``benchmarks.lenet`` is imported. One thread, as in a run of ours;
what is printed is the median of the rounds' processor times.
"""

import sys
import time
from itertools import pairwise
from statistics import median

import torch
from byzfl import ByzantineClient, Client, Server
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.lenet import images

HONEST, BYZANTINE, BATCH, GAMMA = 8, 2, 25, 0.05
WARM_UP = 5
"""Rounds that are not timed."""


def main(rounds: int) -> None:
    """Run and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pixels, classes = images()
    model = {"model_name": "cnn_mnist", "device": "cpu", "learning_rate": GAMMA, "weight_decay": 0.0}
    model |= {"milestones": [], "learning_rate_decay": 1.0, "optimizer_name": "SGD", "optimizer_params": {}}
    clients = []
    for i in range(HONEST):
        share = TensorDataset(pixels[i :: HONEST + BYZANTINE], classes[i :: HONEST + BYZANTINE])
        data = {"training_dataloader": DataLoader(share, batch_size=BATCH, shuffle=True), "nb_labels": 10}
        given = {"loss_name": "CrossEntropyLoss", "LabelFlipping": False, "momentum": 0.0}
        clients.append(Client({**model, **data, **given, "store_per_client_metrics": False}))
    rule = {"name": "TrMean", "parameters": {"f": BYZANTINE}}
    test = DataLoader(TensorDataset(pixels[:100], classes[:100]), batch_size=100)
    server = Server({**model, "aggregator_info": rule, "pre_agg_list": [], "test_loader": test})
    attack = ByzantineClient({"name": "InnerProductManipulation", "f": BYZANTINE, "parameters": {"tau": 0.1}})
    ends = [time.process_time()]
    for _ in range(WARM_UP + rounds):
        state = server.get_dict_parameters()
        for client in clients:
            client.set_model_state(state)
        for client in clients:
            client.compute_gradients()
        honest = [client.get_flat_gradients_with_momentum() for client in clients]
        server.update_model_with_gradients(honest + attack.apply_attack(honest))
        ends.append(time.process_time())
    print(median(b - a for a, b in pairwise(ends[WARM_UP:])) * 1e3)


if __name__ == "__main__":
    main(int(sys.argv[1]))
