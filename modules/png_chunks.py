"""A PNG without what lies beside its pixels, which must not spoil them."""

from __future__ import annotations

import io
import zlib
from bisect import bisect_right
from itertools import accumulate
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
EXIF_BY_TEXT = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # in text chunks of programs
MAX_EXIF = 2**16  # bytes of a chunk, the most that a JPEG can hold of it


def pixel_chunks(file: BinaryIO, with_exif: bool = True) -> BinaryIO:
    """The chunks of a PNG that make its picture, as a file; their bytes are read when asked for.

    Text, colour profiles, further frames and unknown chunks are passed over unread, however large
    or damaged. What is whole of its EXIF data, wherever it stands, comes before the pixels, unless
    with_exif is False. Nothing is decompressed.
    """
    header, exif, pixels = [(0, len(SIGNATURE))], [], []
    start = len(SIGNATURE)
    while True:
        file.seek(start)
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big") + 12, head[4:]
        if len(head) < 8 or not (kind.isalnum() and kind.isascii()):
            break  # the end of what there is
        if kind in PIXELS:
            (pixels if kind in (b"IDAT", b"IEND") or pixels else header).append((start, length))
        elif with_exif and length <= MAX_EXIF and _is_whole_exif(kind, file.read(length - 8)):
            exif.append((start, length))
        start += length
        if kind == b"IEND":
            break
    return io.BufferedReader(_Parts(file, _joined(header + exif + pixels)), 2**16)


def _is_whole_exif(kind: bytes, content: bytes) -> bool:
    data, checksum = content[:-4], content[-4:]
    is_text = kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(EXIF_BY_TEXT)
    return (kind == b"eXIf" or is_text) and zlib.crc32(kind + data).to_bytes(4, "big") == checksum


def _joined(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, length) of runs of bytes, those that follow each other as one."""
    joined = parts[:1]
    for start, length in parts[1:]:
        last_start, last_length = joined[-1]
        if start == last_start + last_length:
            joined[-1] = last_start, last_length + length
        else:
            joined.append((start, length))
    return joined


class _Parts(io.RawIOBase):
    """Parts (start, length) of a file, as one file. No two readers may share the file."""

    def __init__(self, file: BinaryIO, parts: list[tuple[int, int]]) -> None:
        self.file, self.position = file, 0
        self.offsets = [0, *accumulate(length for _, length in parts)]  # of the parts in this file
        self.starts = [start for start, _ in parts]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.offsets[-1]}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        if self.position >= self.offsets[-1]:
            return 0
        part = bisect_right(self.offsets, self.position) - 1
        self.file.seek(self.starts[part] + self.position - self.offsets[part])
        content = self.file.read(min(len(buffer), self.offsets[part + 1] - self.position))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)
