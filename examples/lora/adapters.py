"""Fine-tune LoRA adapters of a small language model: a custom task, and a script that writes texts for a rehearsal.

    python examples/lora/adapters.py DATA

The class ``Adapters`` is the task of ``study.toml``. The script writes ``DATA/NAME/texts.csv`` for each party: made-up
letters to a shop, labelled 1 for a complaint and 0 for praise. Each party's customers write about its own goods.
"""

import argparse
import csv
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

PARTIES = {
    "bakery": ["bread", "cake", "rolls"],
    "books": ["novel", "atlas", "poems"],
    "cycles": ["bicycle", "saddle", "brakes"],
    "garden": ["roses", "spade", "seeds"],
    "lamps": ["lamp", "bulb", "lantern"],
    "shoes": ["boots", "sandals", "laces"],
    "tea": ["kettle", "tea", "teapot"],
}
LETTERS = {
    0: ["thank you for the {}", "the {} is lovely", "my family likes the {}", "i would buy the {} again"],
    1: ["the {} came late", "the {} is broken", "i want my money back for the {}", "nobody repairs my {}"],
}
SALUTATIONS = ["", "dear all, ", "good morning, ", "hello, "]
ALPHABET = "\0abcdefghijklmnopqrstuvwxyz ,"  # token 0 pads


class Adapters:
    """A classifier of texts: a BERT of transformers, frozen in the given precision, with trainable LoRA adapters.

    Args:
        base: seed of the frozen weights, which stand for those of a pre-trained model: the same at every party.
        hidden, layers: width and depth of the base.
        rank: of the adapters.
        length: characters of a text that are read.
        dtype: of the module: "float32", or "bfloat16" or "float16", with a float32 master copy of what is trained.
    """

    test_share = 0.25

    def __init__(
        self, base: int = 0, hidden: int = 64, layers: int = 2, rank: int = 4, length: int = 48, dtype: str = "float32"
    ) -> None:
        self.base, self.hidden, self.layers, self.rank, self.length = base, hidden, layers, rank, length
        self.dtype = dtype

    def model(self) -> nn.Module:
        """Return the base with adapters. Only these and the classifier are trained, so only they travel."""
        sizes = {"hidden_size": self.hidden, "intermediate_size": 2 * self.hidden, "num_hidden_layers": self.layers}
        config = BertConfig(
            **sizes,
            vocab_size=len(ALPHABET),
            num_attention_heads=4,
            max_position_embeddings=self.length,
            pad_token_id=0,
            initializer_range=0.1,
            num_labels=2,
        )
        with torch.random.fork_rng(devices=[]):  # not the seed of the run, which is that of the adapters
            torch.manual_seed(self.base)
            base = BertForSequenceClassification(config)  # with internet access: .from_pretrained(NAME, num_labels=2)
        lora = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=self.rank,
            lora_alpha=4 * self.rank,
            lora_dropout=0.1,
            target_modules=["query", "key", "value", "dense"],
        )
        with warnings.catch_warnings():  # peft asks transformers 5 by a name that transformers 6 will not have
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return get_peft_model(base, lora)

    def local_data(self, folder: Path) -> dict[str, Tensor]:
        """Return the texts of one party; called at this party alone."""
        with (folder / "texts.csv").open(newline="", encoding="utf-8") as file:
            rows = [(row["text"], int(row["label"])) for row in csv.DictReader(file)]
        tokens = torch.zeros(len(rows), self.length, dtype=torch.int64)
        for row, (text, _) in zip(tokens, rows, strict=True):
            known = [ALPHABET.index(letter) for letter in text.lower() if letter in ALPHABET[1:]][: self.length]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        labels = torch.tensor([label for _, label in rows])
        return {"input_ids": tokens, "attention_mask": (tokens != 0).long(), "labels": labels}

    def loss(self, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the mean cross-entropy, which transformers computes from the labels of the batch."""
        loss: Tensor = module(**batch).loss
        return loss

    def correct(self, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return for each text whether its class is predicted."""
        right: Tensor = module(**batch).logits.argmax(dim=1) == batch["labels"]
        return right


def letters(party: str, count: int) -> list[dict[str, Any]]:
    """Return made-up letters, half of them complaints; always the same for a party."""
    draw = random.Random(party)
    rows = []
    for number in range(count):
        text = draw.choice(SALUTATIONS) + draw.choice(LETTERS[number % 2]).format(draw.choice(PARTIES[party]))
        rows.append({"text": text, "label": number % 2})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the texts of all parties."""
    parser = argparse.ArgumentParser(description="write texts for a rehearsal of study.toml")
    parser.add_argument("data", type=Path, help="folder that gets a folder for each party")
    parser.add_argument("--count", type=int, default=200, help="texts of a party")
    options = parser.parse_args(arguments)
    for party in PARTIES:
        path = options.data / party / "texts.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["text", "label"], lineterminator="\n")
            table.writeheader()
            table.writerows(letters(party, options.count))
    print(f"wrote {options.count} texts for each of {len(PARTIES)} parties to {options.data}")


if __name__ == "__main__":
    main()
