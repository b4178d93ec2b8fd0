"""A fake BUSI, as downloaded and in the layout of UNeXt."""

import cv2
import numpy as np

from intrasense_fast.data.fake._tree import Picture, Tree, cut_out, in_colour, neighbour, variant


def write_busi(tree: Tree, count: int) -> None:
    """Folders of benign, malignant and normal images with every oddity of the real one."""
    benign, malignant = round(0.56 * count), round(0.27 * count)
    numbers = {"benign": benign, "malignant": malignant, "normal": count - benign - malignant}
    pictures = {
        (label, i): tree.picture(label)
        for label, last in numbers.items()
        for i in range(1, last + 1)
    }

    def again(source: tuple[str, int], target: tuple[str, int], *kinds: str) -> None:
        pictures[target] = variant(pictures[source], tree.rng, *kinds)

    again(("benign", 2), ("malignant", 1), "resized", "recompressed")
    again(("benign", 3), ("benign", 7), "brightness")
    again(("malignant", 2), ("malignant", 3), "cropped")
    again(("malignant", 2), ("malignant", 4), "resized", "brightness")
    again(("normal", 1), ("normal", 2), "recompressed")
    pictures["benign", 15] = cut_out(pictures["benign", 14], tree.rng)
    pictures["benign", 17] = neighbour(pictures["benign", 16], tree.rng)
    moved = np.roll(pictures["benign", 7].mask, pictures["benign", 7].mask.shape[0] // 2, axis=0)
    pictures["benign", 7] = Picture(pictures["benign", 7].image, moved)
    for (label, i), picture in pictures.items():
        tree.write(_image(label, i), in_colour(picture.image))
        tree.write(_mask(label, i), picture.mask)
    for source, target in ((("benign", 1), ("benign", 6)), (("benign", 12), ("malignant", 8))):
        tree.copy(_image(*source), _image(*target))
        tree.copy(_mask(*source), _mask(*target))
    _duplicates_expected(tree)
    _odd_masks(tree, pictures)
    tree.write_bytes("benign/Thumbs.db", b"\0")
    tree.write_bytes("malignant/.DS_Store", b"\0")
    if tree.broken:
        _break(tree, pictures, benign)


def write_unext(tree: Tree, count: int) -> None:
    """images/, masks/0 and masks/1 with split lists, one of which names an image that is not
    there."""
    names = []
    for i in range(1, count + 1):
        label = ("benign", "malignant", "benign")[i % 3]
        names.append(f"{label} ({i})")
        picture = tree.picture(label)
        tree.write(f"images/{names[-1]}.png", in_colour(picture.image))
        tree.write(f"masks/0/{names[-1]}.png", picture.mask)
        if i % 10 == 1:
            tree.write(f"masks/1/{names[-1]}.png", _second(picture.mask))
    cut = round(0.7 * count)
    tree.write_bytes("busi_train.txt", "".join(f"{name}\n" for name in names[:cut]).encode())
    tree.write_bytes(
        "busi_val.txt", "".join(f"{name}.png\n" for name in [*names[cut:], "benign (999)"]).encode()
    )
    tree.warning(
        ".", "split list 'busi_val' names 1 images that are missing or cannot be used: benign (999)"
    )
    if tree.broken:
        (tree.root / f"masks/0/{names[1]}.png").unlink()
        tree.error(f"images/{names[1]}.png", "image without mask")
        tree.warning(
            ".",
            f"split list 'busi_train' names 1 images that are missing or cannot be used: "
            f"{names[1]}",
        )
        tree.truncate(f"images/{names[2]}.png")


def _image(label: str, i: int) -> str:
    return f"{label}/{label} ({i}).png"


def _mask(label: str, i: int, more: str = "") -> str:
    return f"{label}/{label} ({i})_mask{more}.png"


def _second(mask: np.ndarray) -> np.ndarray:
    """A second lesion for the same image, which may overlap the first."""
    return np.roll(mask, mask.shape[1] // 8, axis=1)


def _duplicates_expected(tree: Tree) -> None:
    tree.warning(_image("benign", 1), "near-duplicate of benign (6): kept in one group")
    tree.warning(_image("benign", 2), "near-duplicate of malignant (1): kept in one group")
    tree.warning(
        _image("benign", 2),
        "conflict: the same picture as malignant (1), but class benign here and malignant there",
    )
    tree.warning(_image("benign", 3), "near-duplicate of benign (7): kept in one group")
    tree.warning(
        _image("benign", 3),
        "conflict: the same picture as benign (7), but their masks overlap by a Dice of",
    )
    tree.warning(_image("benign", 12), "near-duplicate of malignant (8): kept in one group")
    tree.warning(_image("benign", 14), "near-duplicate of benign (15): kept in one group")
    tree.warning(_image("benign", 16), "the same view as benign (17) (neighbouring frames")
    tree.warning(
        _image("benign", 12),
        "conflict: the same picture as malignant (8), but class benign here and malignant there",
    )
    tree.warning(
        _image("malignant", 2), "near-duplicate of malignant (3), malignant (4): kept in one group"
    )
    tree.warning(_image("normal", 1), "near-duplicate of normal (2): kept in one group")


def _odd_masks(tree: Tree, pictures: dict[tuple[str, int], Picture]) -> None:
    tree.write(_mask("benign", 2), in_colour(pictures["benign", 2].mask, alpha=True))
    tree.write(_mask("benign", 3), in_colour(pictures["benign", 3].mask))
    tree.write(_mask("benign", 4, "_1"), _second(pictures["benign", 4].mask))
    tree.write(_mask("benign", 5, "_1"), _second(pictures["benign", 5].mask))
    tree.write(_mask("benign", 5, "_2"), _second(_second(pictures["benign", 5].mask)))
    taller = np.pad(pictures["benign", 8].mask, ((0, 1), (0, 0)))
    tree.write(_mask("benign", 8), taller)
    tree.warning(_mask("benign", 8), "resized with nearest neighbour")
    lesion = pictures["malignant", 5].mask
    wide = cv2.dilate(lesion, np.ones((tree.size // 8,) * 2, np.uint8))
    tree.write(_mask("malignant", 5), np.maximum(lesion, np.minimum(wide, 110)))
    tree.warning(_mask("malignant", 5), "ambiguous grey values")


def _break(tree: Tree, pictures: dict[tuple[str, int], Picture], benign: int) -> None:
    (tree.root / _mask("benign", 9)).unlink()
    tree.error(_image("benign", 9), "image without mask")
    tree.write(_mask("benign", benign + 1), pictures["benign", 9].mask)
    tree.error(_mask("benign", benign + 1), "mask without image")
    tree.truncate(_image("benign", 10))
    tree.write_bytes(_image("benign", 11), b"<html>not found</html>")
    tree.error(_image("benign", 11), "not a PNG, JPEG, BMP, TIFF or DICOM")
    tree.write(_mask("malignant", 6), pictures["malignant", 6].mask[:-9])
    tree.error(_mask("malignant", 6), "use the mask drawn on this image")
    tree.write_bytes(_mask("malignant", 7), b"")
    tree.error(_mask("malignant", 7), "empty file (0 bytes)")
