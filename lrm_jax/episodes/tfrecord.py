"""Records of a TFRecord file by number, without TensorFlow.

The framing is TensorFlow's: uint64 length, masked CRC-32C of it, the bytes, masked CRC-32C of those
(little endian). Libraries that read it without TensorFlow go from start to end only; an index of
offsets makes episodes addressable.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path

from lrm_jax.episodes.broken import BrokenEpisode
from lrm_jax.run.errors import UserError

_HEAD = struct.Struct("<QI")
_CRC = struct.Struct("<I")


class TFRecordFile:
    """`file[i] -> bytes`. The index is made at the first access, from the headers alone.

    A file that is cut off or damaged keeps the records before that place; the others are
    BrokenEpisode.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._index: list[tuple[int, int]] | None = None
        self._damage = ""

    def __getitem__(self, i: int) -> bytes:
        index = self._indexed()
        if i >= len(index):
            raise BrokenEpisode("record", f"{self.path.name}: no record {i} ({self._damage})")
        offset, length = index[i]
        with open(self.path, "rb") as file:
            file.seek(offset)
            data, crc = file.read(length), file.read(_CRC.size)
        if len(crc) < _CRC.size or masked_crc(data) != _CRC.unpack(crc)[0]:
            raise BrokenEpisode("record", f"{self.path.name}: record {i} is damaged (checksum)")
        return data

    def _indexed(self) -> list[tuple[int, int]]:
        with self._lock:
            if self._index is None:
                self._index, self._damage = self._scan()
            return self._index

    def _scan(self) -> tuple[list[tuple[int, int]], str]:
        found: list[tuple[int, int]] = []
        try:
            size = self.path.stat().st_size
            with open(self.path, "rb") as file:
                at = 0
                while at < size:
                    head = file.read(_HEAD.size)
                    if len(head) < _HEAD.size:
                        return found, "the file is cut off"
                    length, crc = _HEAD.unpack(head)
                    if masked_crc(head[:8]) != crc:
                        return found, "a length's checksum is wrong"
                    begin = at + _HEAD.size
                    at = begin + length + _CRC.size
                    if at > size:
                        return found, "the file is cut off"
                    found.append((begin, length))
                    file.seek(at)
        except OSError as error:
            return found, f"the file cannot be read: {error.strerror}"
        return found, f"the file holds {len(found)}"


def masked_crc(data: bytes) -> int:
    """TensorFlow's checksum: CRC-32C, rotated right by 15 bits, plus a constant."""
    try:
        import google_crc32c
    except ImportError:
        raise UserError("TFRecord needs google-crc32c: pip install google-crc32c") from None
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
