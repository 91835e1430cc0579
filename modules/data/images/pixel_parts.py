"""A PNG or JPEG without what lies beside its pixels, which must not spoil them."""

from __future__ import annotations

import io
import zlib
from bisect import bisect_right
from itertools import accumulate
from typing import BinaryIO

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8\xff"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
EXIF_BY_TEXT = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # in text chunks of programs
MAX_EXIF = 2**16  # bytes of a chunk, the most that a JPEG can hold of it
# Of a JPEG's segments of applications, those that turn its picture or say what its colours are: how
# they begin, and how much of them is needed for that.
KEPT = {0xE0: (b"JFIF\0", 14), 0xE1: (b"Exif\0\0", 14), 0xEE: (b"Adobe", 12)}
BESIDE = {*range(0xE0, 0xF0), 0xFE}  # segments of applications, and comments
START_OF_SCAN = 0xDA


def pixel_chunks(file: BinaryIO, with_exif: bool = True) -> BinaryIO:
    """The chunks of a PNG that make its picture, as a file; their bytes are read when asked for.

    Text, colour profiles, further frames and unknown chunks are passed over unread, however large
    or damaged. What is whole of its EXIF data, wherever it stands, comes before the pixels, unless
    with_exif is False. Nothing is decompressed.
    """
    header, exif, pixels = [(0, len(PNG))], [], []
    start, kind = len(PNG), b""
    while kind != b"IEND":
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
    return _as_file(file, header + exif + pixels)


def pixel_segments(file: BinaryIO) -> BinaryIO:
    """The segments of a JPEG that make its picture, as a file; for one that is refused with all.

    Colour profiles, thumbnails, comments and what is cut short beside the pixels are passed over.
    """
    parts, start = [(0, 2)], 2
    while True:
        file.seek(start)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == START_OF_SCAN:
            break  # from here on pixels, or nothing that is known
        length = int.from_bytes(head[2:], "big") + 2
        content = file.read(min(length - 4, 14))
        name, least = KEPT.get(head[1], (None, 0))
        is_kept = name is not None and content.startswith(name) and len(content) >= least
        if is_kept or head[1] not in BESIDE:
            parts.append((start, length))
        start += length
    parts.append((start, file.seek(0, io.SEEK_END) - start))
    return _as_file(file, parts)


def _is_whole_exif(kind: bytes, content: bytes) -> bool:
    data, checksum = content[:-4], content[-4:]
    is_text = kind in (b"tEXt", b"zTXt", b"iTXt") and data.startswith(EXIF_BY_TEXT)
    return (kind == b"eXIf" or is_text) and zlib.crc32(kind + data).to_bytes(4, "big") == checksum


def _as_file(file: BinaryIO, parts: list[tuple[int, int]]) -> BinaryIO:
    """Parts (start, length) of a file, as one file. No two readers may share the file."""
    return io.BufferedReader(_Parts(file, parts), 2**16)


class _Parts(io.RawIOBase):
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
