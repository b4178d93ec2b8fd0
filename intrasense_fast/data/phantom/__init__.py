"""Phantom B-mode images of the breast with exact lesion masks, simulated from scatterers to the
log-compressed picture.

They are made for "identical texture, distinct semantics". A lesion is compact (at most twice as
long as wide) and disturbs what is around it: a rim, or a shadow or an enhancement below it, or
both. A distractor has the speckle, the brightness and the inner structure of a lesion, but it is a
lens that lies along the tissue layers, at least 2.5 times as long as thick, without rim and without
effect on what is below; it is not in the mask. Fat lobules and shadows of poor contact are dark as
well. No threshold and no local texture tells them apart.

Scores on phantoms are not clinical scores.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from intrasense_fast.data.images import write_png
from intrasense_fast.data.phantom.scene import LESIONS, Echo, Margin, scene
from intrasense_fast.data.phantom.signal import compress, envelope
from intrasense_fast.files import atomic_folder


def phantom(
    seed: int | Sequence[int],
    size: int | tuple[int, int] = 256,
    *,
    lesions: int | None = None,
    distractors: int | None = None,
    echo: Echo = "any",
    margin: Margin = "any",
) -> tuple[np.ndarray, np.ndarray]:
    """One phantom: image float32 (H, W) in [0, 1] and mask uint8 (H, W) in {0, 1}.

    Args:
        seed: one number or several, not negative; the same seed and arguments give the same image
            (to the rounding of float32 filters; the mask exactly).
        size: pixels of the square image, or (height, width); at least 32. Lengths scale with the
            height.
        lesions: how many, at most 8; None draws 0 to 3, mostly 1.
        distractors: how many, at most 8; None draws 0 to 3.
        echo: the lesions' brightness. "any" draws one for each; isoechoic is the rare and hard one.
        margin: the lesions' outline. "any" draws one for each.

    Raises:
        ValueError: an argument outside what is named above.
    """
    shape = _shape(size)
    rng = np.random.default_rng(_seed(seed))
    drawn = scene(rng, shape, lesions=lesions, distractors=distractors, echo=echo, margin=margin)
    looks = int(rng.choice((1, 2, 3), p=(0.2, 0.4, 0.4)))
    signal = envelope(drawn.echo + drawn.transmission, rng, looks=looks)
    return compress(signal, gain=rng.uniform(-4, 4), dynamic_range=rng.uniform(50, 60)), drawn.mask


def write_phantom(
    out: str | os.PathLike[str],
    count: int,
    *,
    size: int = 256,
    seed: int = 0,
    normal_fraction: float = 0.08,
) -> Path:
    """Write `count` phantoms as out/images/NAME.png and out/masks/NAME.png (8-bit grey; 0 and 255),
    NAME = phantom_0001 on.

    Image i has the seed (seed, i), so that a larger set begins with the smaller one but for which
    images are normal: round(count * normal_fraction) of them, spread at random. The folder appears
    whole or not at all. Returns `out`.

    Raises:
        ValueError: `out` is in use (nothing is overwritten), or `count`, `normal_fraction`, `size`
            or `seed` is out of range.
        OSError: the folder cannot be written.
    """
    out = Path(out)
    _shape(size)
    _seed(seed)
    if count < 1:
        raise ValueError(f"count={count}: at least one image is needed")
    if not 0 <= normal_fraction <= 1:
        raise ValueError(f"normal_fraction={normal_fraction}: a fraction from 0 to 1 is needed")
    normals = set(
        np.random.default_rng((seed, count))
        .permutation(count)[: round(count * normal_fraction)]
        .tolist()
    )
    with atomic_folder(out) as temporary:
        (temporary / "images").mkdir()
        (temporary / "masks").mkdir()
        for index in range(count):
            image, mask = labelled_phantom((seed, index), size, normal=index in normals)
            name = f"phantom_{index + 1:04d}.png"
            write_png(temporary / "images" / name, to_bytes(image))
            write_png(temporary / "masks" / name, mask * np.uint8(255))
    return out


def labelled_phantom(
    seed: Sequence[int], size: int | tuple[int, int], *, normal: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A phantom that is normal (no lesion) or shows at least one, as asked; see `phantom`."""
    weights = np.asarray(LESIONS[1:])
    number = 1 + int(
        np.random.default_rng((*seed, 1)).choice(len(weights), p=weights / weights.sum())
    )
    return phantom(seed, size, lesions=0 if normal else number)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """An image in [0, 1] as uint8."""
    return np.rint(image * 255).astype(np.uint8)


def _shape(size: int | tuple[int, int]) -> tuple[int, int]:
    shape = (size, size) if isinstance(size, int) else tuple(size)
    if len(shape) != 2 or min(shape) < 32 or max(shape) > 4096:
        raise ValueError(
            f"size={size}: 32 to 4096 pixels are needed, one number or (height, width)"
        )
    return shape


def _seed(seed: int | Sequence[int]) -> int | Sequence[int]:
    if min([seed] if isinstance(seed, int) else seed, default=-1) < 0:
        raise ValueError(f"seed={seed}: whole numbers that are not negative are needed")
    return seed
