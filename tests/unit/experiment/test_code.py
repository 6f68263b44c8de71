"""What a process reports of its code: bounded, harmless, and compared by revision."""

import json

import pytest

from experiment.code import Code, code_fingerprint
from experiment.config import parse

CONFIG = """
[federation]
clients = 3
[task]
kind = "digits"
[strategy]
kind = "byz-vr-marina-pp"
rounds = 1
gamma = 0.1
p = 0.3
cohort = 2
batch = 8
clip = false
[compressor]
kind = "rand-k"
ratio = 0.1
"""


def test_a_report_is_read_as_it_was_written() -> None:
    mine = Code.here(parse(CONFIG))
    assert mine.fingerprint == code_fingerprint()
    assert mine.revisions.keys() == {"byz-vr-marina-pp", "rand-k", "identity", "streams"}
    report = mine.added_to('{"dim": "3"}')
    assert Code.read(report) == mine
    assert json.loads(report)["dim"] == "3"
    assert mine.differences(mine) == []
    assert str(mine) == f"{mine.version} ({mine.fingerprint})"


def test_revisions_must_agree_and_versions_need_not() -> None:
    server = Code.here(parse(CONFIG))
    newer = Code(version="9", fingerprint="0123456789ab", revisions=server.revisions)
    assert newer.differences(server) == []
    other = Code(revisions={**server.revisions, "rand-k": 7})
    assert other.differences(server) == ["revision of rand-k 7 at the client, 1 at the server"]
    assert len(Code().differences(server)) == 4, "who says nothing shares nothing"


@pytest.mark.parametrize(
    "report",
    [
        *("", "{", "[]", "[" * 4000, "null", "3", "{}", 7, None, b"x", '{"code": 3}', '{"code": {}}', "x" * 100_000),
        '{"code": {"version": 1, "fingerprint": [], "revisions": []}}',
        '{"code": {"version": "1", "fingerprint": "f", "revisions": {"a": "b", "c": true, "d": -1, "e": 1e999}}}',
    ],
)
def test_a_report_that_makes_no_sense_is_an_unknown_code(report: object) -> None:
    code = Code.read(report)
    assert code.revisions == {}
    assert len(Code.here(parse(CONFIG)).differences(code)) == 0
    assert code.differences(Code.here(parse(CONFIG)))


def test_what_is_read_is_one_short_line() -> None:
    hostile = "v\n\x1b[31m" + "x" * 500
    revisions = {f"r{i}\n" + "y" * 500: i + 1 for i in range(50)}
    text = json.dumps({"code": {"version": hostile, "fingerprint": hostile, "revisions": {"a\n": 5}}})
    code = Code.read(text)
    assert str(code).isprintable()
    assert len(str(code)) < 200
    assert code.revisions == {"a?": 5}
    many = Code.read(json.dumps({"code": {"version": "1", "fingerprint": "f", "revisions": revisions}}))
    assert len(many.revisions) <= 8
    assert all(len(name) <= 64 for name in many.revisions)
