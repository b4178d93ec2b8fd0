"""A fake data set of class folders, with the oddities that cameras and systems make."""

import contextlib
import os
import struct
import zlib

import cv2
import numpy as np

from intrasense_fast.data.fake._tree import Tree

_TWELVE_BITS = 16


def write_class_folders(tree: Tree, count: int) -> None:
    """benign/images with benign/masks, malignant/images with malignant/mask, masks of 0, 1 and 2.

    labels.csv names patients, without the leading zeros of the images; some pictures carry an
    orientation tag, one uses 12 of 16 bits; hidden and system entries and a link that leads back
    lie among them.
    """
    rows: list[tuple[object, ...]] = [("Image Name", "Patient ID", "Scanner")]
    for i in range(1, count + 1):
        label = ("benign", "malignant")[i % 2]
        image, mask = tree.picture(label)
        name = f"{label}/images/{i:04}"
        if i == 3:
            tree.write_bytes(f"{name}.jpg", turned_jpeg(image, 6))
        elif i == 4:
            tree.write_bytes(f"{name}.png", turned_png(image, 3))
        elif i == 5:
            tree.write(f"{name}.png", image.astype(np.uint16) * np.uint16(_TWELVE_BITS))
            tree.warning(f"{name}.png", "low levels: values up to")
        else:
            tree.write(f"{name}.png", image)
        masks = {"benign": "masks", "malignant": "mask"}[label]
        tree.write(f"{label}/{masks}/{i:04}_mask.png", (mask > 0) * np.uint8(1 + i % 3 // 2))
        rows.append((i, f"P{(i + 1) // 2}", "A"))
    for hidden in (".thumbnails/0001.png", "__MACOSX/._0001.png", ".ipynb_checkpoints/0001.png"):
        tree.copy("malignant/images/0001.png", f"malignant/images/{hidden}")
    tree.write_bytes("benign/images/Thumbs.db", b"\0")
    with contextlib.suppress(OSError):
        (tree.root / "benign" / "images" / "back").symlink_to("..")
    if tree.broken:
        _break(tree, rows)
    tree.table("labels.csv", rows)


def _break(tree: Tree, rows: list[tuple[object, ...]]) -> None:
    rows.remove(next(row for row in rows if row[0] == 7))
    tree.error("malignant/images/0007.png", "no patient or group in labels.csv")
    for name in ("scan.webp", "scan.jp2"):
        tree.write_bytes(f"benign/images/{name}", b"\0" * 200)
        tree.error(f"benign/images/{name}", "which is not read")
    header = struct.pack(">IIBBBBB", 65000, 65000, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IEND", b"")
    tree.write_bytes("benign/images/0008.png", content)
    tree.error("benign/images/0008.png", "4225 million pixels, more than the 100 million")
    tree.write_bytes("malignant/images/0009.png", b"RIFF\0\0\0\0WEBPVP8 ")
    tree.error("malignant/images/0009.png", "a WebP picture")
    if hasattr(os, "mkfifo"):
        (tree.root / "malignant" / "images" / "0011.png").unlink()
        os.mkfifo(tree.root / "malignant" / "images" / "0011.png")
        tree.error("malignant/images/0011.png", "a FIFO (named pipe)")


def stored(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels of a file that people see as `pixels`, for its EXIF orientation says so."""
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }
    return np.ascontiguousarray(turned.get(orientation, pixels))


def exif(orientation: int) -> bytes:
    """EXIF data that holds an orientation and nothing else."""
    return b"MM\x00*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)


def turned_jpeg(pixels: np.ndarray, orientation: int) -> bytes:
    """A JPEG that people see as `pixels`, stored otherwise."""
    content = cv2.imencode(".jpg", stored(pixels, orientation))[1].tobytes()
    data = b"Exif\x00\x00" + exif(orientation)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + content[2:]


def turned_png(pixels: np.ndarray, orientation: int) -> bytes:
    """The same as a PNG."""
    content = cv2.imencode(".png", stored(pixels, orientation))[1].tobytes()
    return content[:33] + _chunk(b"eXIf", exif(orientation)) + content[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
