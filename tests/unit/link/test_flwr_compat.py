"""The contract with flwr: what its private names do for us, on the version that is installed."""

import ast
import subprocess
import sys

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from link import flwr_compat
from tests.packages import PACKAGES, ROOT

PUBLIC = {
    "flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp",
    "flwr.server", "flwr.client", "flwr.common", "flwr.server.strategy",  # the old API, that a benchmark compares with
}  # fmt: skip


def test_an_instruction_can_be_built_outside_a_flower_process() -> None:
    code = (
        "from flwr.app import Message, RecordDict\n"
        "from link import flwr_compat\n"
        "try: Message(RecordDict(), 5, 'train')\n"
        "except RuntimeError: pass\n"
        "else: raise SystemExit('flwr needs no identity any more: drop set_identity')\n"
        "flwr_compat.set_identity(7)\n"
        "metadata = Message(RecordDict(), 5, 'train').metadata\n"
        "assert (metadata.run_id, metadata.src_node_id) == (7, 1), metadata\n"
        "flwr_compat.set_identity(8)\n"
        "assert Message(RecordDict(), 5, 'train').metadata.run_id == 7\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_stamped_instruction_and_its_reply_know_each_other() -> None:
    flwr_compat.set_identity(1)
    message = Message(RecordDict(), 5, "train", group_id="3")
    flwr_compat.stamp(message, message_id="42", run_id=9)
    metadata = message.metadata
    assert (metadata.message_id, metadata.run_id, metadata.src_node_id, metadata.dst_node_id) == ("42", 9, 1, 5)
    for answer in (Message(RecordDict(), reply_to=message), Message(Error(1, "x"), reply_to=message)):
        flwr_compat.name_reply(answer, "43")
        reply = answer.metadata
        assert (reply.message_id, reply.reply_to_message_id, reply.run_id) == ("43", "42", 9)
        assert (reply.src_node_id, reply.dst_node_id, reply.group_id) == (5, 1, "3")


def told(message: Message) -> dict[str, object]:
    """Return the metadata of a message, without its times."""
    return {k: v for k, v in vars(message.metadata).items() if k not in ("_created_at", "_ttl")}


def test_a_copy_to_another_node_is_what_flower_would_build() -> None:
    flwr_compat.set_identity(1)
    content = RecordDict()
    first = Message(content, 5, "train", group_id="3", ttl=7.0)
    copied, built = flwr_compat.addressed(first, 6), Message(content, 6, "train", group_id="3", ttl=7.0)
    assert told(copied) == told(built)
    assert (copied.content is content, copied.metadata.ttl, first.metadata.dst_node_id) == (True, 7.0, 5)
    assert vars(copied).keys() == vars(built).keys()
    copied.content = RecordDict({"c": ConfigRecord()})
    flwr_compat.stamp(copied, message_id="42", run_id=9)
    assert (first.content is content, first.metadata.message_id) == (True, "")


def test_a_reply_without_content_is_otherwise_what_flower_would_build() -> None:
    flwr_compat.set_identity(1)
    asked = Message(RecordDict(), 5, "train", group_id="3", ttl=7.0)
    flwr_compat.stamp(asked, message_id="42", run_id=9)
    reply, built = flwr_compat.replied(asked, Message), Message(RecordDict(), reply_to=asked)
    assert told(reply) == told(built)
    assert 0 < reply.metadata.ttl <= 7.0
    assert (reply.has_error(), reply.has_content()) == (False, False)
    assert vars(reply).keys() == vars(built).keys()


def test_a_client_can_answer_what_it_gets() -> None:
    content = RecordDict({"c": ConfigRecord({"a": 1})})
    got = flwr_compat.instruction(
        content, run_id=9, node_id=5, message_id="42", message_type="train", group_id="3", ttl_s=10.0
    )
    assert got.content is content
    assert (got.metadata.src_node_id, got.metadata.dst_node_id, got.metadata.ttl) == (1, 5, 10.0)
    reply = Message(RecordDict(), reply_to=got)
    assert reply.metadata.reply_to_message_id == "42"
    assert 0 < reply.metadata.ttl <= 10.0


def test_an_unknown_message_type_is_refused() -> None:
    with pytest.raises(ValueError, match="message type"):
        flwr_compat.instruction(
            RecordDict(), run_id=9, node_id=5, message_id="42", message_type="dance", group_id="3", ttl_s=0.0
        )


def test_the_rest_of_the_contract() -> None:
    assert flwr_compat.empty_run(12).run_id == 12
    codes = (flwr_compat.SERVER_NODE_ID, flwr_compat.APP_RAISED, flwr_compat.BAD_REPLY, flwr_compat.NODE_UNAVAILABLE)
    assert codes == (1, 2, 4, 5)


def test_nothing_else_touches_private_names_of_flwr() -> None:
    for package in (*PACKAGES, "benchmarks"):
        for file in (ROOT / package).rglob("*.py"):
            if file.name == "flwr_compat.py":
                continue
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                private = [name for name in names if name.split(".")[0] == "flwr" and name not in PUBLIC]
                assert not private, f"{file}: {private}"


@pytest.mark.parametrize("version", ["1.38.0", "0.9", "2.0.0", "2.1.0rc1"])
def test_a_flower_out_of_range_is_named_with_the_mend(version: str) -> None:
    code = f"import importlib.metadata as m; m.version = lambda name: {version!r}; import client.app"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    told = f"ImportError: Breakwater needs flwr >= 1.39 and < 2, here is {version}: pip install 'flwr>=1.39,<2'"
    assert done.stderr.splitlines()[-1] == told


@pytest.mark.parametrize(("kind", "simulated"), [(InMemoryGrid, True), (HttpGrid, False)])
def test_flowers_simulation_is_told_by_its_grid(kind: type, simulated: bool) -> None:
    assert flwr_compat.is_simulated(object.__new__(kind)) is simulated
