"""One decoding: orientation against Pillow, size from the header, and what a decoder cannot do."""

import struct
import threading
import tracemalloc
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from intrasense_fast.data import ImageError, ReadingOptions, open_dataset, read_image
from intrasense_fast.data.budget import PixelBudget
from intrasense_fast.data.fake.class_folders import exif, turned_jpeg, turned_png
from intrasense_fast.data.images import decode_image, pixel_count, to_grey
from intrasense_fast.data.verify import verify

Image = pytest.importorskip("PIL.Image", reason="Pillow is the oracle of orientations")
ImageOps = pytest.importorskip("PIL.ImageOps", reason="Pillow is the oracle of orientations")


def upright(path: Path) -> np.ndarray:
    """The picture as Pillow shows it."""
    return np.asarray(ImageOps.exif_transpose(Image.open(path)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tiff", "tiff 16-bit", "tiff RGB", "png RGB"])
def test_every_orientation_of_every_format(
    kind: str, orientation: int, tmp_path: Path, seed: int
) -> None:
    suffix, _, mode = kind.partition(" ")
    rng = np.random.default_rng(seed)
    shape = (20, 33, 3) if mode == "RGB" else (20, 33)
    pixels = cv2.GaussianBlur(rng.integers(0, 256, shape, np.uint8), (0, 0), 2)
    if mode == "16-bit":
        pixels = pixels.astype(np.uint16) * np.uint16(257)
    path = tmp_path / f"a.{suffix}"
    tag = Image.Exif()
    tag[274] = orientation
    if suffix == "tiff":
        Image.fromarray(pixels).save(path, tiffinfo={274: orientation})
        # Pillow reads turned TIFFs of bare pixels wrongly, so a PNG shows what they are.
        Image.fromarray(pixels).save(tmp_path / "b.png", exif=tag)
        wanted = upright(tmp_path / "b.png")
    else:
        Image.fromarray(pixels).save(path, exif=tag)
        wanted = upright(path)
    decoded = decode_image(path)
    assert decoded.pixels.shape == wanted.shape and decoded.pixels.dtype == wanted.dtype
    assert decoded.orientation == orientation and pixel_count(path) == 20 * 33
    difference = np.abs(decoded.pixels.astype(int) - wanted.astype(int))
    assert difference.max() <= (2 if suffix == "jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fake_turned_files_are_what_pillow_shows(orientation: int, tmp_path: Path) -> None:
    pixels = np.arange(12 * 20, dtype=np.uint8).reshape(12, 20)
    (tmp_path / "a.png").write_bytes(turned_png(pixels, orientation))
    assert np.array_equal(upright(tmp_path / "a.png"), pixels)
    (tmp_path / "a.jpg").write_bytes(turned_jpeg(pixels, orientation))
    assert upright(tmp_path / "a.jpg").shape == pixels.shape


def test_image_and_mask_meet_as_people_see_them(tmp_path: Path) -> None:
    image, mask = np.full((24, 40), 90, np.uint8), np.zeros((24, 40), np.uint8)
    image[3:9, 5:20] = 200
    mask[3:9, 5:20] = 255
    (tmp_path / "a.png").write_bytes(turned_png(image, 6))
    (tmp_path / "a_mask.png").write_bytes(turned_png(mask, 3))
    (sample,) = open_dataset(tmp_path, group_duplicates=False)
    assert sample.mask.shape == (24, 40) and np.array_equal(sample.mask, mask // 255)
    assert np.array_equal(sample.image > 0.5, sample.mask == 1)
    assert "1 images and 1 masks, turned as people see them" in str(verify(tmp_path))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_white_is_zero(dtype: type, tmp_path: Path) -> None:
    pixels = (np.arange(256).reshape(16, 16) * (np.iinfo(dtype).max // 255)).astype(dtype)
    content = bytearray(cv2.imencode(".tiff", pixels, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1])
    place = content.index(struct.pack("<HHI", 262, 3, 1)) + 8
    assert content[place] == 1
    content[place] = 0
    (tmp_path / "a.tiff").write_bytes(content)
    decoded = decode_image(tmp_path / "a.tiff").pixels
    assert decoded.dtype == dtype and np.array_equal(decoded, np.iinfo(dtype).max - pixels)


def png(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def resized_header(content: bytes, suffix: str, width: int, height: int) -> bytes:
    """A sound file whose header promises another size."""
    data = bytearray(content)
    if suffix == ".jpg":
        place = data.index(b"\xff\xc0") + 5
        data[place : place + 4] = struct.pack(">HH", height, width)
    elif suffix == ".bmp":
        data[18:26] = struct.pack("<ii", width, height)
    elif suffix == ".tiff":
        for tag, value in ((256, width), (257, height)):
            place = data.index(struct.pack("<H", tag) + b"\x03\x00\x01")
            data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)
    else:
        return png(width, height)
    return bytes(data)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff"])
def test_a_size_beyond_the_budget_is_refused_before_decoding(suffix: str, tmp_path: Path) -> None:
    content = cv2.imencode(suffix, np.full((16, 16), 77, np.uint8))[1].tobytes()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(resized_header(content, suffix, 65000, 65000))
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"4225 million pixels, more than the 100 million"):
        read_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    path.write_bytes(content)
    with pytest.raises(ImageError, match="raise --max-pixels"):
        read_image(path, max_pixels=255)
    assert read_image(path, max_pixels=256).shape == (16, 16)


def test_a_decoder_that_raises_is_one_named_failure(tmp_path: Path) -> None:
    content = cv2.imencode(".jpg", np.full((16, 16), 77, np.uint8))[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(resized_header(content, ".jpg", 65000, 65000))
    with pytest.raises(ImageError, match=r"a\.jpg"):
        read_image(path, max_pixels=2**33)


@pytest.mark.parametrize("kind", ["jbig", "lossless", "12-bit"])
def test_what_is_only_unsupported_is_not_called_corrupt(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if kind == "jbig":
        content = bytearray(cv2.imencode(".tiff", pixels)[1].tobytes())
        place = content.index(struct.pack("<HH", 259, 3)) + 8
        content[place : place + 2] = struct.pack("<H", 34661)
    else:
        path = tmp_path / "a.jpg"
        content = bytearray(cv2.imencode(".jpg", pixels)[1].tobytes())
        place = content.index(b"\xff\xc0")
        if kind == "lossless":
            content[place + 1] = 0xC3
        else:
            content[place + 4] = 12
    path.write_bytes(bytes(content))
    with pytest.raises(ImageError, match=f"{path.name}.*not read here") as caught:
        read_image(path)
    assert "corrupt" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"RIFF\0\0\0\0WEBPVP8 ", "WebP"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"GIF89a", "GIF"),
        (b"II+\0\x08\0", "BigTIFF"),
    ],
)
def test_pictures_of_other_formats_are_named(start: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(start + b"\0" * 400)
    with pytest.raises(ImageError, match=f"a {name} picture"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("levels", [None, 63, 4095])
def test_levels_are_a_division_by_white(dtype: type, levels: int | None, seed: int) -> None:
    largest = int(np.iinfo(dtype).max)
    white = min(levels or largest, largest)
    rng = np.random.default_rng(seed)
    for shape in ((300, 7), (300, 7, 3)):
        pixels = rng.integers(0, white + 1, shape).astype(dtype)
        grey = to_grey(pixels, "a", levels)
        exact = pixels.astype(np.float64)
        if len(shape) == 3:
            exact = exact @ np.array([0.299, 0.587, 0.114])
        assert grey.dtype == np.float32 and grey.shape == shape[:2]
        np.testing.assert_allclose(grey, exact / white, atol=1e-7)
    if white < largest:
        with pytest.raises(ImageError, match=f"beyond --levels {levels}"):
            to_grey(np.full((4, 4), white + 1, dtype), "a", levels)


def test_low_levels_are_named_and_mended(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), np.uint8)
    mask[5:20, 6:22] = 255
    for i in range(3):
        image = rng.integers(100, 4096, (40, 50)).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        cv2.imwrite(str(tmp_path / f"{i}_mask.png"), mask)
    report = verify(tmp_path)
    said = [problem for problem in report.problems if "low levels" in problem.message]
    assert len(said) == 3 and all("give --levels 4095" in problem.message for problem in said)
    assert "low levels  " in str(report)
    options = ReadingOptions(levels=4095)
    assert not verify(tmp_path, options=options).problems
    (sample, *_) = open_dataset(tmp_path, options=options)
    assert sample.image.max() > 0.9


def test_pixels_in_memory_are_bounded_over_threads() -> None:
    budget, held, most = PixelBudget(100), [0], [0]
    lock = threading.Lock()

    def work(pixels: int) -> None:
        for _ in range(20):
            with budget.hold(pixels):
                with lock:
                    held[0] += min(pixels, 100)
                    most[0] = max(most[0], held[0])
                with lock:
                    held[0] -= min(pixels, 100)

    threads = [threading.Thread(target=work, args=(size,)) for size in (30, 40, 50, 99, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads) and 0 < most[0] <= 100


def test_exif_that_is_damaged_turns_nothing(tmp_path: Path, seed: int) -> None:
    content = cv2.imencode(".jpg", np.full((12, 20), 99, np.uint8))[1].tobytes()
    rng = np.random.default_rng(seed)
    for _ in range(60):
        tag = bytearray(exif(6))
        for place in rng.integers(0, len(tag), 3):
            tag[place] = rng.integers(256)
        data = b"Exif\0\0" + bytes(tag[: rng.integers(1, len(tag) + 1)])
        segment = b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data
        (tmp_path / "a.jpg").write_bytes(content[:2] + segment + content[2:])
        assert read_image(tmp_path / "a.jpg").shape in ((12, 20), (20, 12))
