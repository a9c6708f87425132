"""Which JPEG files MindSpore's decoder may be given: a broken table makes it crash, and the training's process with it.

Everything that libjpeg refuses with an error (jdmarker.c, jdinput.c, jdhuff.c, jdmaster.c) is refused here, by reading
the markers of ITU T.81, annex B. Damage within the compressed data only gives wrong pixels, in every decoder.
"""

from __future__ import annotations

import re

SOF0, DHT, EOI, SOS, DQT, DRI, COM = 0xC0, 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xFE
APPLICATION = range(0xE0, 0xF0)
MAX_SIDE = 65500
MAX_BLOCKS = 10
# Ends the compressed data: a marker other than a stuffed zero or a restart.
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of an undamaged everyday JPEG: baseline, 8 bits, grey or three channels, one scan, whole.

    Args:
        data: a file's bytes.

    Returns:
        (height, width), or None for anything else: progressive, CMYK, truncated, damaged, trailing bytes, no JPEG.
    """
    if data[:3] != b"\xff\xd8\xff" or data[-2:] != b"\xff\xd9":
        return None
    quantisation: set[int] = set()
    huffman: set[int] = set()
    frame = None
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if length < 2 or len(segment) != length - 2:
            return None
        position += 2 + length
        if marker == SOF0 and frame is None:
            frame = read_frame(segment)
            if frame is None:
                return None
        elif marker == DQT:
            if not read_quantisation(segment, quantisation):
                return None
        elif marker == DHT:
            if not read_huffman(segment, huffman):
                return None
        elif marker == SOS:
            if frame is None or not scan_is_whole(segment, frame[1], quantisation, huffman):
                return None
            end = NEXT_MARKER.search(data, position)
            return frame[0] if end is not None and end.start() == len(data) - 2 else None
        elif marker == DRI:
            if len(segment) != 2:
                return None
        elif marker not in APPLICATION and marker != COM:
            return None
    return None


def read_frame(segment: bytes) -> tuple[tuple[int, int], dict[int, int]] | None:
    """(height, width) and {component: number of its quantisation table} of a frame header, or None."""
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3) or len(segment) != 6 + 3 * segment[5]:
        return None
    height, width = int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
        return None
    components = {segment[i]: segment[i + 2] for i in range(6, len(segment), 3)}
    sampling = [(segment[i] >> 4, segment[i] & 15) for i in range(7, len(segment), 3)]
    # The sampling factors of every camera and program; libjpeg refuses those that do not divide each other.
    if len(components) != segment[5] or any(h not in (1, 2, 4) or v not in (1, 2, 4) for h, v in sampling):
        return None
    if sum(h * v for h, v in sampling) > MAX_BLOCKS:
        return None
    return (height, width), components


def read_quantisation(segment: bytes, tables: set[int]) -> bool:
    """Add the numbers of the quantisation tables in a segment; whether they are well formed."""
    position = 0
    while position < len(segment):
        precision, number = segment[position] >> 4, segment[position] & 15
        position += 1 + 64 * (1 + precision)
        if precision > 1 or number > 3 or position > len(segment):
            return False
        tables.add(number)
    return True


def read_huffman(segment: bytes, tables: set[int]) -> bool:
    """Add the class and number bytes of the Huffman tables in a segment; whether every code can exist."""
    position = 0
    while position < len(segment):
        head, counts = segment[position], segment[position + 1 : position + 17]
        position += 17
        symbols = segment[position : position + sum(counts)]
        position += len(symbols)
        if head & 0xEC or len(counts) != 16 or not 0 < sum(counts) <= 256 or len(symbols) != sum(counts):
            return False
        if head < 0x10 and max(symbols) > 15:
            return False
        code = 0
        for bits, count in enumerate(counts, 1):
            code += count
            if count and code > 1 << bits:
                return False
            code <<= 1
        tables.add(head)
    return True


def scan_is_whole(segment: bytes, components: dict[int, int], quantisation: set[int], huffman: set[int]) -> bool:
    """Whether a scan header has all components of the frame, each with its tables."""
    count = segment[0] if segment else 0
    if count != len(components) or len(segment) != 4 + 2 * count:
        return False
    selectors = {segment[i]: segment[i + 1] for i in range(1, 1 + 2 * count, 2)}
    return (
        selectors.keys() == components.keys()
        and quantisation.issuperset(components.values())
        and all({tables >> 4, 0x10 | (tables & 15)} <= huffman for tables in selectors.values())
    )
