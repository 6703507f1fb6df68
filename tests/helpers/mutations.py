"""Damage done to files: the same for the same seed."""

from __future__ import annotations

import gzip
import json
import random
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS = (
    *(
        "nan",
        "-nan",
        "inf",
        "1e308",
        "-1e308",
        "1e-320",
        "0",
        "-0",
        "-1",
        "1",
        "2",
        "3",
        "4",
        "65536",
        "2147483648",
        "0.5",
    ),
    *(
        "9999999999",
        "18446744073709551616",
        "1" * 400,
        "0x10",
        "1_0",
        "1,5",
        "1e",
        ".",
        "--1",
        "3\u00b2",
        "\u0663",
        "1e999",
    ),
    *("true", '"1"', ""),
)
ODD = (
    *(
        "\0",
        "\r",
        "\x0b",
        "\x1c",
        "\x85",
        "\u2028",
        "\ufeff",
        "\u00e9",
        "\u00b2",
        "\\",
        '"',
        "'",
        "(",
        ")",
        "[",
        "]",
        "{",
    ),
    *("}", "=", "//", "#", ";", ",", "\t", " " * 50, "\n\n", "[" * 3000, "A" * 5000),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1e308, -1e308, 2**70, float("nan"), float("inf"), "", "x", "nan", "../x", "x" * 300),
    *([], {}, [[]], [None], [1, 2, 3], ["a", "b", "c"], {"a": 1}, "\0", "\u00e9\u2028"),
)
INTEGERS = (0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, -(2**31), 2**32 - 1, 2**62)
FLOATS = (0.0, -1.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"), 1e308)
_HEADER = 400  # bytes, in which half of the damage is done


def mutate(raw: bytes, name: str, rng: random.Random) -> bytes:
    """Return damaged content of a file.

    Parameters
    ----------
    raw : bytes
        The whole file.
    name : str
        Its name; the suffix says what damage is worth doing.
    rng : random.Random
    """
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        raw = _choose(name, rng)(raw, rng)
    return raw


def _choose(name: str, rng: random.Random) -> Callable[[bytes, random.Random], bytes]:
    suffix = Path(name).suffix
    if suffix == ".gz":
        return rng.choice((_in_gzip, _bytes))
    if suffix == ".safetensors":
        return rng.choice((_in_header, _in_header, _bytes))
    if suffix == ".json":
        return rng.choice((_json, _json, _text))
    if suffix in (".txt", ".toml", ".csv", ".fcsv", ".vtk", ".tfm"):
        return rng.choice((_text, _text, _text, _bytes))
    if suffix in (".mha", ".mhd", ".nrrd"):
        return rng.choice((_text_header, _text_header, _bytes))
    return _bytes


def _place(raw: bytes, rng: random.Random) -> int:
    end = len(raw) if rng.random() < 0.5 else min(len(raw), _HEADER)
    return rng.randrange(max(1, end))


def _bytes(raw: bytes, rng: random.Random) -> bytes:
    at, length = _place(raw, rng), rng.choice((1, 1, 2, 4, 8, 40, 400))
    kind = rng.randrange(8)
    if kind == 0 and raw:
        return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    if kind == 1:
        return raw[:at] + rng.randbytes(length) + raw[at + length :]
    if kind == 2:
        return raw[:at] + bytes([rng.choice((0, 255))]) * length + raw[at + length :]
    if kind == 3:
        return raw[:at] + raw[at + length :]
    if kind == 4:
        return raw[:at] + raw[at : at + length] + raw[at:]
    if kind == 5:
        return raw[: rng.randrange(len(raw) + 1)]
    order = rng.choice("<>")
    if kind == 6:
        form = rng.choice("hiq")
        bits = 8 * struct.calcsize(form)
        value = (rng.choice(INTEGERS) + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
        patch = struct.pack(order + form, value)
    else:
        form, number = rng.choice("fd"), rng.choice(FLOATS)
        patch = struct.pack(order + form, number if form == "d" or abs(number) < 1e300 or number != number else 1e38)
    at -= at % len(patch)
    return raw[:at] + patch + raw[at + len(patch) :]


def _text(raw: bytes, rng: random.Random) -> bytes:
    text = raw.decode("utf-8", "surrogateescape")
    lines = text.splitlines(keepends=True) or [""]
    at, other, place = rng.randrange(len(lines)), rng.randrange(len(lines)), rng.randrange(len(text) + 1)
    kind = rng.randrange(9)
    if kind <= 2:
        text = _one_word(text, rng)
    elif kind == 3:
        del lines[at]
        text = "".join(lines)
    elif kind == 4:
        text = "".join([*lines[:at], lines[other], *lines[at:]])
    elif kind == 5:
        lines[at], lines[other] = lines[other], lines[at]
        text = "".join(lines)
    elif kind == 6:
        text = text[:place]
    elif kind == 7:
        text = text[:place] + rng.choice(ODD) + text[place:]
    else:
        text = text[:place] + text[place + rng.choice((1, 2, 10)) :]
    return text.encode("utf-8", "surrogateescape")


def _one_word(text: str, rng: random.Random) -> str:
    """Replace a number, or a word, by something odd."""
    words = list(re.finditer(r"[-+]?\d[\d.eE+-]*" if rng.random() < 0.8 else r"\w+", text))
    if not words:
        return text + rng.choice(NUMBERS)
    word = rng.choice(words)
    return text[: word.start()] + rng.choice(NUMBERS) + text[word.end() :]


def _text_header(raw: bytes, rng: random.Random) -> bytes:
    """Damage the text before the voxels."""
    ends = [at + len(end) for end in (b"ElementDataFile = LOCAL\n", b"\n\n") if (at := raw.find(end)) >= 0]
    end = min(ends, default=len(raw))
    return _text(raw[:end], rng) + raw[end:]


def _in_gzip(raw: bytes, rng: random.Random) -> bytes:
    try:
        inner = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error):
        return raw
    return gzip.compress(_bytes(inner, rng), 1, mtime=0)


def _json(raw: bytes, rng: random.Random) -> bytes:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    return json.dumps(_changed(content, rng)).encode()


def _changed(content: Any, rng: random.Random) -> Any:
    """Return a value in which one, somewhere, is another, missing, or under another name."""
    inner = (
        list(content) if isinstance(content, dict) else list(range(len(content))) if isinstance(content, list) else []
    )
    if not inner or rng.random() < 0.15:
        return rng.choice(VALUES)
    key = rng.choice(inner)
    if rng.random() < 0.15:
        if isinstance(content, dict):
            return {name: value for name, value in content.items() if name != key}
        return content[:key] + content[key + 1 :]
    if isinstance(content, dict):
        return {**content, key: _changed(content[key], rng)}
    return [*content[:key], _changed(content[key], rng), *content[key + 1 :]]


def _in_header(raw: bytes, rng: random.Random) -> bytes:
    """Damage the JSON with which a safetensors file begins, with its length corrected."""
    length = int.from_bytes(raw[:8], "little")
    header = rng.choice((_json, _text))(raw[8 : 8 + length], rng)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]
