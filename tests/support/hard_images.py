"""Hard images: every size, mode and format that data sets hold, and files that only look like images.

    python -m tests.support.hard_images OUT          writes a labelled folder of images that every program reads alike
    python -m tests.support.hard_images OUT --bad    writes a labelled folder of files that every program refuses

The same bytes on every machine with one version of Pillow.
"""

import os
import struct
import sys
import zlib

import numpy as np
from PIL import Image

from benchmarks import photos
from benchmarks.photos import encode

SIZES = [
    *[(1, 1), (1, 2), (2, 1), (2, 2), (3, 5), (5, 3), (7, 7), (8, 8), (9, 17), (15, 16), (16, 15), (16, 16), (17, 31)],
    *[(31, 33), (32, 32), (33, 31), (1, 100), (100, 1), (2, 199), (199, 2), (3, 250), (1, 127), (127, 1), (640, 11)],
    *[(63, 64), (64, 64), (65, 63), (73, 73), (72, 74), (100, 100), (223, 224), (224, 224), (225, 226), (255, 256)],
    *[(256, 256), (257, 255), (300, 200), (333, 500), (500, 333), (500, 375), (375, 500), (640, 480), (481, 640)],
    *[(1000, 37), (37, 1000), (1024, 768), (1600, 1200)],
]
SMALL_SIZES = [(1, 1), (2, 3), (8, 8), (17, 31), (40, 30), (64, 64), (101, 67), (300, 200), (500, 375)]
FEW_SIZES = [(5, 3), (48, 40), (301, 199)]
LARGE_SIZES = [(4000, 3000), (2999, 3999), (4000, 257)]


def draw(width, height, seed=0, mode="RGB"):
    """A picture with smooth areas, edges and noise, in any of Pillow's modes."""
    image = photos.draw(width, height, seed)
    if mode in ("LA", "RGBA"):
        image = image.convert(mode)
        ramp = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8), (height, width))
        image.putalpha(Image.fromarray(np.ascontiguousarray(ramp)))
        return image
    if mode == "P":
        return image.quantize(64)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def png_chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width, height, depth, colour_type, rows, extra=b"", interlace=0):
    """A PNG file of given rows, each behind its filter byte, of kinds that Pillow reads and does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlace)
    parts = [png_chunk(b"IHDR", header), extra, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_filter_bytes(rows):
    """Rows of samples as PNG has them, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in rows)


def png_of_16_bits(width, height):
    """An RGB PNG of 16 bits a channel."""
    pixels = np.asarray(draw(width, height)).astype(">u2") * 257 - 100
    return raw_png(width, height, 16, 2, with_filter_bytes(pixels.astype(">u2")))


def interlace_by_adam7(pixels):
    """The rows of the seven passes of an interlaced PNG."""
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = (pixels[y::down, x::right] for y, x, down, right in passes)
    return b"".join(with_filter_bytes(part) for part in parts if part.size)


def unusual_pngs():
    """Yield (path below the root, bytes): depths, transparency, palettes that are too short, interlacing."""
    random = np.random.RandomState(7)
    width, height = 41, 45
    for colour_type, channels in ((0, 1), (2, 3), (4, 2), (6, 4)):
        rows = random.randint(0, 65536, (height, width * channels)).astype(">u2")
        yield f"png/deep{colour_type}_41x45.png", raw_png(width, height, 16, colour_type, with_filter_bytes(rows))
    for depth in (1, 2, 4, 8):
        rows = with_filter_bytes(random.randint(0, 256, (height, (width * depth + 7) // 8)).astype(np.uint8))
        palette = png_chunk(b"PLTE", random.bytes(3 * max(1, 2**depth - 1)))
        for key, transparency in (("", b""), ("_key", b"\0\1")):
            chunk = png_chunk(b"tRNS", transparency) if transparency else b""
            yield f"png/grey{depth}{key}_41x45.png", raw_png(width, height, depth, 0, rows, chunk)
            chunk = png_chunk(b"tRNS", transparency[:1]) if transparency else b""
            yield f"png/palette{depth}{key}_41x45.png", raw_png(width, height, depth, 3, rows, palette + chunk)
    pixels = np.asarray(draw(width, height))
    yield "png/interlaced_41x45.png", raw_png(width, height, 8, 2, interlace_by_adam7(pixels), interlace=1)
    yield "png/interlaced_grey_41x45.png", raw_png(width, height, 8, 0, interlace_by_adam7(pixels[..., 0]), interlace=1)
    yield "png/no_end_41x45.png", encode(draw(width, height), "PNG")[:-12]


def without_segment(data, marker):
    """A JPEG without the segments of a marker."""
    position = 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] == marker:
            data = data[:position] + data[end:]
        else:
            position = end
    return data


def adobe_transform(data, transform):
    """A JPEG whose Adobe marker names another colour transform (0 none, 1 YCbCr, 2 YCCK)."""
    position = data.index(b"Adobe")
    return data[: position + 11] + bytes([transform]) + data[position + 12 :]


def exif(orientation):
    """EXIF data with an orientation."""
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def other_images():
    """Yield (path below the root, bytes) of formats that the C++ program names and refuses; the others read them."""
    for width, height in FEW_SIZES:
        size = f"{width}x{height}"
        image = draw(width, height, 6)
        yield f"other/lossy_{size}.webp", encode(image, "WEBP")
        yield f"other/alpha_{size}.webp", encode(draw(width, height, 6, "RGBA"), "WEBP", lossless=True)
        yield f"other/rgb_{size}.bmp", encode(image, "BMP")
        yield f"other/palette_{size}.bmp", encode(image.quantize(16), "BMP")
        yield f"other/bits_{size}.bmp", encode(image.convert("1"), "BMP")
        yield f"other/still_{size}.gif", encode(image, "GIF")
        frames = [draw(width, height, seed).quantize(16) for seed in (7, 8)]
        yield f"other/moving_{size}.gif", encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
        yield f"other/rgb_{size}.tif", encode(image, "TIFF")
        yield f"other/rgb_{size}.ppm", encode(image, "PPM")


def good_images():
    """Yield (path below the root, bytes) of images that decode."""
    for width, height in SIZES:
        size = f"{width}x{height}"
        image = draw(width, height)
        yield f"jpeg/420_{size}.jpg", encode(image, "JPEG", quality=85)
        yield f"jpeg/444_{size}.jpg", encode(image, "JPEG", quality=92, subsampling="4:4:4")
        yield f"png/rgb_{size}.png", encode(image, "PNG", compress_level=1)
    for width, height in SMALL_SIZES:
        size = f"{width}x{height}"
        image = draw(width, height, 1)
        for quality in (1, 30, 100):
            yield f"jpeg/quality{quality}_{size}.JPEG", encode(image, "JPEG", quality=quality)
        yield f"jpeg/422_{size}.jpeg", encode(image, "JPEG", subsampling="4:2:2")
        yield f"jpeg/411_{size}.jpg", encode(image, "JPEG", subsampling="4:1:1")
        yield f"jpeg/optimised_{size}.jpg", encode(image, "JPEG", optimize=True)
        yield f"jpeg/restarts_{size}.jpg", encode(image, "JPEG", restart_marker_blocks=2)
        yield f"jpeg/grey_{size}.jpg", encode(image.convert("L"), "JPEG")
        yield f"jpeg_odd/progressive_{size}.jpg", encode(image, "JPEG", progressive=True)
        yield f"jpeg_odd/progressive_grey_{size}.jpg", encode(image.convert("L"), "JPEG", progressive=True)
        cmyk = encode(draw(width, height, 2, "CMYK"), "JPEG", quality=90)
        yield f"jpeg_odd/cmyk_adobe_inverted_{size}.jpg", cmyk
        yield f"jpeg_odd/cmyk_{size}.jpg", without_segment(cmyk, 0xEE)
        yield f"jpeg_odd/ycck_{size}.jpg", adobe_transform(cmyk, 2)
        yield f"jpeg_odd/rgb_inside_{size}.jpg", encode(image, "JPEG", keep_rgb=True)
        yield f"jpeg_odd/trailing_{size}.jpg", encode(image, "JPEG") + b"trailing bytes" * 3
        for mode in ("L", "LA", "RGBA", "P", "1", "I;16"):
            yield f"png/{mode.replace(';', '')}_{size}.png", encode(draw(width, height, 3, mode), "PNG")
        yield f"png/named_jpeg_{size}.JPEG", encode(image, "PNG")
        yield f"png/16_bits_{size}.png", png_of_16_bits(width, height)
    for width, height in FEW_SIZES:
        size = f"{width}x{height}"
        image = draw(width, height, 4)
        for orientation in range(1, 9):
            yield f"jpeg/exif{orientation}_{size}.jpg", encode(image, "JPEG", exif=exif(orientation))
        yield f"jpeg/profile_{size}.jpg", encode(image, "JPEG", icc_profile=bytes(range(256)) * 300)
        yield f"jpeg/comment_{size}.jpg", encode(image, "JPEG", comment=b"\xff\xd9\xff\xda" * 900)
        yield f"jpeg/no_jfif_{size}.jpg", without_segment(encode(image, "JPEG"), 0xE0)
        yield f"png/transparent_palette_{size}.png", encode(draw(width, height, 5, "P"), "PNG", transparency=3)
        yield f"jpeg_odd/named_png_{size}.png", encode(image, "JPEG")
        # As in motion JPEG: decoders fill in the standard Huffman tables.
        yield f"jpeg_odd/without_tables_{size}.jpg", without_segment(encode(image, "JPEG"), 0xC4)
    yield from unusual_pngs()
    yield from other_images()
    for width, height in LARGE_SIZES:
        image = draw(width, height)
        yield f"large/420_{width}x{height}.jpg", encode(image, "JPEG", quality=70)
    yield "large/progressive_3000x2000.jpg", encode(draw(3000, 2000), "JPEG", quality=70, progressive=True)
    yield "large/rgb_3001x1999.png", encode(draw(3001, 1999), "PNG", compress_level=1)


def bad_images():
    """Yield (path below the root, bytes) of files with an image's name that are refused."""
    image = draw(200, 150)
    jpeg, png = encode(image, "JPEG"), encode(image, "PNG")
    yield "bad/empty.jpg", b""
    yield "bad/text.jpg", b"This is a text.\n" * 40
    yield "bad/zeros.png", bytes(1000)
    for share in (1, 20, 50, 90, 99):
        yield f"bad/jpeg_cut_to_{share}_percent.jpg", jpeg[: len(jpeg) * share // 100]
        yield f"bad/png_cut_to_{share}_percent.png", png[: len(png) * share // 100]
    yield "bad/jpeg_without_its_end.jpg", jpeg[:-4]
    yield "bad/progressive_cut.jpg", encode(image, "JPEG", progressive=True)[:3000]
    yield "bad/only_the_start.jpg", b"\xff\xd8\xff"
    yield "bad/start_and_end.jpg", b"\xff\xd8\xff\xd9"
    tables = bytearray(jpeg)
    position = jpeg.index(b"\xff\xc4")
    tables[position + 5 : position + 21] = b"\xff" * 16
    yield "bad/jpeg_with_damaged_tables.jpg", bytes(tables)
    yield "bad/jpeg_without_quantisation.jpg", without_segment(jpeg, 0xDB)
    yield "bad/jpeg_of_no_height.jpg", jpeg.replace(struct.pack(">HH", 150, 200), struct.pack(">HH", 0, 200), 1)
    damaged = bytearray(png)
    damaged[len(png) // 2] ^= 0x55
    yield "bad/png_with_a_wrong_checksum.png", bytes(damaged)
    yield "bad/bomb_20000x20000.png", encode(Image.new("1", (20000, 20000)), "PNG")
    yield "bad/bomb_12000x10000.png", encode(Image.new("1", (12000, 10000)), "PNG")
    bomb = encode(Image.new("L", (64, 64)), "JPEG")
    yield "bad/bomb_65000x65000.jpg", bomb.replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 65000, 65000), 1)
    yield "bad/bomb_2147483647x1.png", raw_png(2**31 - 1, 1, 16, 6, bytes(1000))
    yield "bad/sliver_1x5000.png", encode(Image.new("RGB", (1, 5000)), "PNG")
    yield "bad/sliver_9000x1.jpg", encode(Image.new("RGB", (9000, 1)), "JPEG")


def write_images(root, bad=False):
    """Write the images below a folder; returns how many."""
    count = 0
    for name, data in bad_images() if bad else good_images():
        path = os.path.join(root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        count += 1
    return count


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["--bad"]):
        sys.exit("usage: python -m tests.support.hard_images OUT [--bad]")
    print(f"{write_images(sys.argv[1], len(sys.argv) == 3)} images in {sys.argv[1]}")
