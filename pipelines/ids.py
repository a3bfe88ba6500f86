"""Prediction ids: unique, and repeatable wherever the same input can be scored twice.

Web ids are uuid7 (RFC 9562), so they sort by time. Batch and stream ids are functions of where the row came from:
a job that is run again, or a message that is delivered again, gives the same ids, and the inference table can tell.
"""

from __future__ import annotations

import hashlib
import os
import time

import pyarrow as pa
import pyarrow.compute as pc

_TOPIC_SEPARATOR = ":"
SHADOW_SUFFIX = ":shadow"


def new_prediction_ids(n: int) -> list[str]:
    """Return `n` fresh uuid7 strings; those of one call share their millisecond and are distinct by 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    noise = os.urandom(10 * n)
    return [_uuid7(milliseconds, noise[10 * i : 10 * i + 10]) for i in range(n)]


def _uuid7(milliseconds: int, noise: bytes) -> str:
    random = int.from_bytes(noise, "big")
    value = (
        (milliseconds & 0xFFFF_FFFF_FFFF) << 80
        | 0x7 << 76
        | (random >> 62 & 0xFFF) << 64
        | 0b10 << 62
        | random & 0x3FFF_FFFF_FFFF_FFFF
    )
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def shadow_prediction_id(prediction_id: str) -> str:
    """Return the id of what a challenger said, unheard, of the row that got this id: labels of that one join it too."""
    return prediction_id + SHADOW_SUFFIX


def place_of(key: str, purpose: str) -> float:
    """Return where in [0, 1) a key stands: the same in every process and always, and unlike for each purpose.

    Whoever takes the keys below a share takes them again at a larger one. With the same place for two purposes, the
    tenth of the rows that is logged would be the very tenth that a canary answers.
    """
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8, person=purpose.encode())
    return (int.from_bytes(digest.digest(), "big") >> 11) / 2**53  # as many bits as a double holds


def stream_prediction_id(topic: str, ledger: int, entry: int, batch_index: int) -> str:
    """Return `topic:ledger:entry:index`: stable over redelivery and over restarts of the broker."""
    return f"{topic}{_TOPIC_SEPARATOR}{ledger}:{entry}:{batch_index}"


def stream_position(prediction_id: str) -> tuple[str, int, int, int] | None:
    """Return (topic, ledger, entry, batch index) of a stream prediction id; None when it is no such id."""
    parts = prediction_id.rsplit(_TOPIC_SEPARATOR, 3)
    if len(parts) != 4:
        return None
    try:
        return parts[0], int(parts[1]), int(parts[2]), int(parts[3])
    except ValueError:
        return None


def batch_prediction_ids(job_id: str, file_digest: str, rows: pa.Array) -> pa.StringArray:
    """Return `job:file:row` for each row number (counted from 0 in its file)."""
    prefix = f"{job_id}:{file_digest}:"
    return pc.utf8_replace_slice(rows.cast(pa.string()), 0, 0, prefix)  # two thirds of the time of a join
