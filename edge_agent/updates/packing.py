"""Zstandard as releases use it: whole, and with an earlier image as the prefix of a later one."""

from __future__ import annotations

import sys
from typing import Any, Final

from edge_agent.updates.archive import ImageError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL: Final = 19
DELTA_LEVELS: Final = (3, LEVEL)
"""Which of them makes the smaller delta depends on the change: both are tried."""
MOST_WINDOW_LOG: Final = 30
"""A gigabyte: nothing larger is released, and nothing larger is unpacked."""


def compress(image: bytes, base: bytes | None = None) -> bytes:
    """Packed whole, or against `base`."""
    if base is None:
        return zstd.compress(image, options=_options(LEVEL))
    return min((_delta(image, base, level) for level in DELTA_LEVELS), key=len)


def _options(level: int) -> dict[int, int]:
    return {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.checksum_flag: 1,
    }


def _delta(image: bytes, base: bytes, level: int) -> bytes:
    """The window reaches from the image's end to the base's beginning."""
    window = max(10, min(MOST_WINDOW_LOG, (len(base) + len(image)).bit_length()))
    options = _options(level) | {
        zstd.CompressionParameter.window_log: window,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    return zstd.compress(image, options=options, zstd_dict=_prefix(base))


def decompress(packed: bytes, length: int, base: bytes | None = None) -> bytes:
    """The image of exactly `length` bytes. Raises ImageError."""
    unpacker = zstd.ZstdDecompressor(
        zstd_dict=None if base is None else _prefix(base),
        options={zstd.DecompressionParameter.window_log_max: MOST_WINDOW_LOG},
    )
    try:
        image = unpacker.decompress(packed, max_length=length + 1)
    except (zstd.ZstdError, EOFError) as error:
        raise ImageError(f"damaged Zstandard data: {error}") from None
    if len(image) != length or not unpacker.eof or unpacker.unused_data:
        raise ImageError(f"the unpacked image has not the {length} bytes that it should have")
    return image


def _prefix(base: bytes) -> Any:
    return zstd.ZstdDict(base, is_raw=True).as_prefix
