"""Several opinions on an image, of checkpoints and of its mirror images, joined in one answer."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from intrasense_fast.inference.calibration import tempered
from intrasense_fast.inference.doubt import entropy
from intrasense_fast.inference.segmenter import Segmenter, probability_maps
from intrasense_fast.inference.tiles import fits, tiled

Map = NDArray[np.float32]
Flip = tuple[int, ...]

AT_A_TIME = 8
NO_FLIP: Flip = ()


class Answer(NamedTuple):
    """What an ensemble says of an image.

    Attributes:
        probability: float32 (H, W) in [0, 1], the mean of the calibrated opinions.
        disagreement: float32 (H, W) in [0, 1], their mutual information in bits: the entropy of the
            mean less the mean of the entropies. None where it was not asked for, or there is one
            opinion.
    """

    probability: Map
    disagreement: Map | None = None


@dataclass(frozen=True)
class Ensemble:
    """Networks of one class that answer together; several threads may ask at a time.

    Attributes:
        members: each with its calibration; all see squares of one size.
        flips: axes of (H, W) that are turned round, one opinion of each member for each.
        tile: side in pixels of the tiles of larger images, or None: every image is seen whole.
        batch: images at a time.
    """

    members: tuple[Segmenter, ...]
    flips: tuple[Flip, ...] = (NO_FLIP,)
    tile: int | None = None
    batch: int = AT_A_TIME

    @property
    def size(self) -> int:
        """Side in pixels of the square that the networks see."""
        return self.members[0].size

    @property
    def levels(self) -> int | None:
        """The value of white that they were trained with (--levels), or None."""
        return self.members[0].levels

    @property
    def opinions(self) -> int:
        """How many answers are averaged of an image."""
        return len(self.members) * len(self.flips)

    @property
    def temperatures(self) -> list[float]:
        """Of each member; 1 of one without calibration."""
        return [member.temperature for member in self.members]

    @property
    def threshold(self) -> float | None:
        """The mean of the members' thresholds beside 0.5, or None where one of them has none."""
        thresholds = [each.calibration.threshold for each in self.members if each.calibration]
        return float(np.mean(thresholds)) if len(thresholds) == len(self.members) else None

    def answers(
        self,
        images: Sequence[Map],
        *,
        disagreement: bool = False,
        chosen: Sequence[Collection[int]] | None = None,
    ) -> list[Answer | None]:
        """The answer for each image, on its own grid; None where a network fails.

        Args:
            images: float32 (H, W) in [0, 1], each of its own size.
            disagreement: also make that map.
            chosen: of each image, the places of the members that are asked; None = all.

        Raises:
            ValueError: an image has non-finite pixels.
        """
        pools = [_Pool(disagreement) for _ in images]
        for place, member in enumerate(self.members):
            mine = [i for i in range(len(images)) if chosen is None or place in chosen[i]]
            for flip in self.flips:
                maps = self._maps(member, [images[i] for i in mine], flip)
                for i, probability in zip(mine, maps, strict=True):
                    pools[i].add(probability, member.temperature)
        return [pool.answer() for pool in pools]

    def _maps(self, member: Segmenter, images: list[Map], flip: Flip) -> list[Map | None]:
        ask = partial(_ask, member, flip)
        if self.tile is None:
            return ask(images)
        tile = self.tile
        whole = iter(ask([image for image in images if fits(image.shape, tile)]))
        return [
            next(whole) if fits(image.shape, tile) else tiled(ask, image, tile, self.batch)
            for image in images
        ]


def ensemble_of(network: Segmenter | Ensemble) -> Ensemble:
    """A single network as an ensemble of one."""
    return network if isinstance(network, Ensemble) else Ensemble((network,))


class _Pool:
    """The opinions on one image, of which sums alone are kept."""

    def __init__(self, disagreement: bool) -> None:
        self._disagreement = disagreement
        self._count = 0
        self._failed = False
        self._sum: Map | None = None
        self._entropies: Map | None = None

    def add(self, probability: Map | None, temperature: float) -> None:
        if probability is None:
            self._failed = True
            return
        opinion = tempered(probability, temperature)
        self._count += 1
        if self._disagreement:
            of_one = entropy(opinion)
            self._entropies = of_one if self._entropies is None else self._entropies + of_one
        self._sum = opinion if self._sum is None else self._sum + opinion

    def answer(self) -> Answer | None:
        if self._failed or self._sum is None:
            return None
        if self._count == 1:
            return Answer(self._sum)
        mean = self._sum / np.float32(self._count)
        if self._entropies is None:
            return Answer(mean)
        within = self._entropies / np.float32(self._count)
        # By Jensen's inequality it is never negative, up to rounding.
        return Answer(mean, (entropy(mean) - within).clip(0, 1))


def _ask(member: Segmenter, flip: Flip, images: list[Map]) -> list[Map | None]:
    return probability_maps(member.net, images, member.size, member.amp, flip)
