"""Which files are read as pictures, which others are pictures too, and what to do about those."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

from PIL import Image

# Formats of photographs and of image data sets. The rest of what PIL opens stays closed: EPS, for
# one, would hand a downloaded file to Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "JXL", "PNG", "PPM", "TGA", "TIFF",
           "WEBP")  # fmt: skip
SUFFIXES = {
    ".apng", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg",
    ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff",
    ".webp",
}  # fmt: skip
PACKED_SUFFIXES = {".arrow", ".parquet", ".tar", ".zip"}
OPTIONAL = {  # format: its suffixes, and what reads them
    "AVIF": ((".avif",), "pip install --upgrade pillow"),
    "HEIF": ((".heic", ".heif", ".hif"), "pip install pillow-heif"),
    "JXL": ((".jxl",), "pip install pillow-jxl-plugin"),
}
RAW = {
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25",
    ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl",
    ".sr2", ".srf", ".srw", ".x3f",
}  # fmt: skip
OTHERS = {
    ".ai", ".bpg", ".cur", ".dds", ".emf", ".eps", ".exr", ".fit", ".fits", ".flif", ".hdr",
    ".icns", ".ico", ".jxr", ".pcx", ".pfm", ".psb", ".psd", ".qoi", ".sgi", ".svg", ".svgz",
    ".wdp", ".wmf", ".xbm", ".xcf", ".xpm",
}  # fmt: skip


@cache
def formats() -> tuple[str, ...]:
    """Of FORMATS, those that this installation of PIL and its plugins reads."""
    Image.init()
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    with suppress(ImportError):
        import pillow_jxl  # noqa: F401  registers itself
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def suffixes() -> frozenset[str]:
    """Of the files that are looked for in a folder, in lower case."""
    found = [OPTIONAL[name][0] for name in OPTIONAL if name in formats()]
    return frozenset(SUFFIXES.union(*found))


def unread_format(head: bytes) -> str | None:
    """As `remedy`, for a file that begins so, whatever its name."""
    marks = {b"ftypavi": ".avif", b"ftyphe": ".heic", b"ftypmif1": ".heic", b"JXL ": ".jxl"}
    kinds = [kind for mark, kind in marks.items() if head[4:].startswith(mark)]
    kinds += [".jxl"] * head.startswith(b"\xff\x0a")
    return next(map(remedy, kinds), None)


@cache
def remedy(suffix: str) -> str | None:
    """What to do about pictures of a kind that is not read; None for files of any other kind."""
    if suffix in suffixes():
        return None
    for kinds, command in OPTIONAL.values():
        if suffix in kinds:
            return command
    if suffix in RAW:
        return "raw photographs: develop them to TIFF or PNG"
    return "convert them to PNG" if suffix in OTHERS else None
