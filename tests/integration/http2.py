"""Every byte of one direction of a gRPC connection without TLS, taken apart: HTTP/2 frames, then the link's frames."""

import struct
from collections import Counter
from dataclasses import dataclass, field

from hpack import Decoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES = 9
"""Of an HTTP/2 frame."""


@dataclass
class Conversation:
    """What one end said on a connection.

    Args:
        frames: how many HTTP/2 frames of each kind, by the name of their class.
        headers: names and values of all headers.
        settings: identifiers and values of all settings.
        codes: error codes of streams and connections that were ended, with what else was said.
        messages: of gRPC, in their order: the link's frames.
        rest: the beginning of a frame or message that the end of the connection cut off.
    """

    frames: Counter[str] = field(default_factory=Counter)
    headers: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[int, int] = field(default_factory=dict)
    codes: list[tuple[int, bytes]] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    rest: bytes = b""


def read(sent: bytes) -> Conversation:
    """Take apart all that a client sent on a connection.

    Raises:
        AssertionError: some bytes are nothing that is known here.
    """
    found, decoder, data = Conversation(), Decoder(), bytearray()
    if not sent:
        return found
    assert sent.startswith(PREFACE), sent[:40]
    at = len(PREFACE)
    while at < len(sent):
        frame, length = Frame.parse_frame_header(memoryview(sent)[at : at + HEAD_BYTES])
        body = memoryview(sent)[at + HEAD_BYTES : at + HEAD_BYTES + length]
        if len(body) < length:
            found.rest = sent[at:]
            break
        frame.parse_body(body)
        at += HEAD_BYTES + length
        _take(frame, found, decoder, data)
    end = 0
    while end < len(data):
        flag, size = struct.unpack_from(">BI", data, end)
        assert flag == 0, "no compression"
        message = bytes(data[end + 5 : end + 5 + size])
        end += 5 + size
        if len(message) == size:
            found.messages.append(message)
        else:
            found.rest += message
    return found


def _take(frame: Frame, found: Conversation, decoder: Decoder, data: bytearray) -> None:
    found.frames[type(frame).__name__] += 1
    match frame:
        case DataFrame():
            assert not frame.pad_length
            data += frame.data
        case HeadersFrame():
            assert "END_HEADERS" in frame.flags
            assert not frame.pad_length
            found.headers += [(str(name), str(value)) for name, value in decoder.decode(frame.data)]
        case SettingsFrame():
            found.settings |= frame.settings
        case RstStreamFrame():
            found.codes.append((frame.error_code, b""))
        case GoAwayFrame():
            found.codes.append((frame.error_code, frame.additional_data))
        case PingFrame() | WindowUpdateFrame():
            pass  # eight bytes that come back, and a number
        case _:
            raise AssertionError(f"an HTTP/2 frame that nobody expects: {frame!r}")
