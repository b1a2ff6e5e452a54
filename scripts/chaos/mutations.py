"""Damage done to a file: bits, bytes and blocks changed, removed, repeated or cut off; words put into texts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Mutation = Callable[[bytearray, random.Random], bytearray]
_EXTREMES = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x80\0\0\0")
_HEADER = 2048
_WORDS = (
    *(b"nan", b"-1", b"1e999", b"0", b"99999999999999999999", b"null", b'""', b"[]", b"{}", b"\xff\xfe", b"\0"),
    *(b"=cmd|' /C calc'!A0", b"../../../etc/passwd", b"x" * 5000, b"\n\n,,\n", b"[" * 60_000, b'{"a":' * 20_000),
)
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def mutated(content: bytes, rng: random.Random, *, text: bool) -> bytes:
    """The content with one to three faults, half of them where most formats have their headers."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kinds = _OF_TEXT if text and rng.random() < 0.7 else _OF_BYTES
        made = rng.choice(kinds)(made, rng)
    return bytes(made)


def _place(made: bytearray, rng: random.Random) -> int:
    end = len(made)
    if not end:
        return 0
    where = rng.random()
    if where < 0.4:
        return rng.randrange(min(_HEADER, end))
    return rng.randrange(max(0, end - _HEADER), end) if where < 0.55 else rng.randrange(end)


def _flip(made: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8))):
        if made:
            made[_place(made, rng)] ^= 1 << rng.randrange(8)
    return made


def _overwrite(made: bytearray, rng: random.Random) -> bytearray:
    place, size = _place(made, rng), rng.choice((1, 2, 4, 16))
    made[place : place + size] = rng.randbytes(min(size, len(made) - place))
    return made


def _extreme(made: bytearray, rng: random.Random) -> bytearray:
    place, value = _place(made, rng), rng.choice(_EXTREMES)
    made[place : place + len(value)] = value
    return made


def _delete(made: bytearray, rng: random.Random) -> bytearray:
    place = _place(made, rng)
    del made[place : place + rng.choice((1, 2, 7, 64, 1000))]
    return made


def _insert(made: bytearray, rng: random.Random) -> bytearray:
    place = _place(made, rng)
    made[place:place] = rng.randbytes(rng.choice((1, 2, 7, 64)))
    return made


def _repeat(made: bytearray, rng: random.Random) -> bytearray:
    place = _place(made, rng)
    made[place:place] = made[place : place + rng.choice((4, 64, 4096))]
    return made


def _cut(made: bytearray, rng: random.Random) -> bytearray:
    return made[: _place(made, rng)]


def _zero(made: bytearray, rng: random.Random) -> bytearray:
    """A block that the disk did not get."""
    size = rng.choice((512, 4096))
    start = _place(made, rng) // size * size
    made[start : start + size] = bytes(min(size, len(made) - start))
    return made


def _swap(made: bytearray, rng: random.Random) -> bytearray:
    size = rng.choice((4, 512))
    first, second = sorted((_place(made, rng), _place(made, rng)))
    if first + size <= second and second + size <= len(made):
        made[first : first + size], made[second : second + size] = (
            made[second : second + size],
            made[first : first + size],
        )
    return made


def _word(made: bytearray, rng: random.Random) -> bytearray:
    place = _place(made, rng)
    made[place:place] = rng.choice(_WORDS)
    return made


def _number(made: bytearray, rng: random.Random) -> bytearray:
    found = list(_NUMBER.finditer(made))
    if found:
        one = rng.choice(found)
        made[one.start() : one.end()] = rng.choice(_WORDS[:8])
    return made


def _line(made: bytearray, rng: random.Random) -> bytearray:
    lines = made.split(b"\n")
    one = rng.randrange(len(lines))
    lines[one : one + 1] = rng.choice(([], [lines[one]] * 2, [lines[one], lines[0]]))
    return bytearray(b"\n".join(lines))


_OF_BYTES: tuple[Mutation, ...] = (_flip, _flip, _overwrite, _extreme, _delete, _insert, _repeat, _cut, _zero, _swap)
_OF_TEXT: tuple[Mutation, ...] = (_word, _number, _number, _line)
