"""Which format a file has, from its first bytes. Names nothing that it does not know."""

from __future__ import annotations

from typing import NamedTuple


class Magic(NamedTuple):
    """A recognised beginning: our name of the format, its kind, and the reader (Pillow or FFmpeg name)."""

    format: str
    kind: str
    #: empty: known by name only, never decoded
    reader: str = ""


#: bytes the file starts with -> what it is; longer answers that need more than a prefix are in `sniff`
PREFIXES = {
    b"\xff\xd8\xff": Magic("jpeg", "image", "JPEG"),
    b"\x89PNG\r\n\x1a\n": Magic("png", "image", "PNG"),
    b"BM": Magic("bmp", "image", "BMP"),
    b"GIF8": Magic("gif", "image", "GIF"),
    b"II*\x00": Magic("tiff", "image"),
    b"MM\x00*": Magic("tiff", "image"),
    b"ID3": Magic("mp3", "audio", "mp3"),
    b"OggS": Magic("ogg", "audio", "ogg"),
    b"fLaC": Magic("flac", "audio", "flac"),
    b"FLV\x01": Magic("flv", "video", "flv"),
    b"\x00\x00\x01\xba": Magic("mpeg", "video", "mpeg"),
}
RIFF_FORMS = {
    b"WEBP": Magic("webp", "image", "WEBP"),
    b"WAVE": Magic("wav", "audio", "wav"),
    b"AVI ": Magic("avi", "video", "avi"),
}
BRANDS = {
    b"qt  ": Magic("mov", "video", "mov"),
    b"M4A ": Magic("m4a", "audio", "mov"),
    b"M4B ": Magic("m4a", "audio", "mov"),
    **dict.fromkeys((b"avif", b"avis"), Magic("avif", "image")),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1"), Magic("heic", "image")),
}
#: atoms that open a QuickTime file of the time before `ftyp`
OLD_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def sniff(head: bytes) -> Magic | None:
    """Recognises a format from the first bytes of a file (64 are enough)."""
    for prefix, magic in PREFIXES.items():
        if head.startswith(prefix):
            return magic
    if head[:4] in (b"RIFF", b"RF64", b"BW64"):
        return RIFF_FORMS.get(head[8:12])
    if head[4:8] == b"ftyp":
        name = "3gp" if head[8:10] == b"3g" else "mp4"
        return BRANDS.get(head[8:12], Magic(name, "video", "mov"))
    if head[4:8] in OLD_ATOMS:
        return Magic("mov", "video", "mov")
    if head.startswith(b"\x1aE\xdf\xa3"):  # EBML; the document type follows within the header
        return Magic("webm" if b"webm" in head else "mkv", "video", "matroska")
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return Magic("html", "unknown")
    return _sniff_bare_audio(head)


def _sniff_bare_audio(head: bytes) -> Magic | None:
    """MP3 or AAC frames without a header: an 11-bit sync word, then 2 bits of version and 2 bits of layer."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    layer = (head[1] >> 1) & 3
    if layer == 1 and head[2] >> 4 != 15:
        return Magic("mp3", "audio", "mp3")
    return Magic("aac", "audio", "aac") if head[1] & 0xF6 == 0xF0 else None
