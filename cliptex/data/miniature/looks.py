"""The looks of the data sets: training pairs, the experts' training images and benchmarks.

They differ moderately in light, textures, proportions and sensor noise: models trained on one have to generalise to
the others.
"""

from dataclasses import dataclass, replace

import numpy as np

from cliptex.data.miniature.meshes import Paint, Vector

COLOURS: dict[str, Vector] = {
    "red": (0.78, 0.12, 0.10),
    "orange": (0.90, 0.47, 0.10),
    "yellow": (0.92, 0.78, 0.14),
    "green": (0.18, 0.52, 0.20),
    "blue": (0.14, 0.30, 0.70),
    "purple": (0.46, 0.20, 0.56),
    "pink": (0.90, 0.52, 0.62),
    "brown": (0.44, 0.28, 0.16),
    "beige": (0.80, 0.71, 0.55),
    "white": (0.92, 0.91, 0.88),
    "grey": (0.52, 0.53, 0.55),
    "black": (0.09, 0.09, 0.11),
}
"""Colour names in captions -> RGB in 0..1."""

FABRICS = ("solid", "stripes", "checker", "dots", "noise", "bands")


Range = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """Parameter ranges of a data set's scenes."""

    domain: int  # part of the seed, so that no two data sets share a scene
    warmth: Range  # colour of the light, from blue (-1) to yellow (+1)
    ambient: Range  # share of ambient light
    stretch: Range  # vertical scaling of objects, relative to their width
    patterned: float  # share of patterned furniture and clothes
    odd_colour: float  # share of objects with a colour that is atypical of their class
    saturation: Range
    noise: Range  # standard deviation of the sensor noise, relative to white
    blur: Range  # standard deviation of the blur, pixels of a 96-pixel image
    cast: float  # standard deviation of the colour channels' gains (colour cast)
    jpeg: tuple[int, int]  # JPEG quality
    flash: float  # share of indoor images taken with a flash


LOOKS = {
    "experts": Look(
        domain=1, warmth=(-0.2, 0.4), ambient=(0.35, 0.55), stretch=(0.9, 1.1), patterned=0.15, odd_colour=0.04,
        saturation=(0.85, 1.1), noise=(0.005, 0.015), blur=(0.3, 0.5), cast=0.03, jpeg=(88, 95), flash=0.9,
    ),
    "pairs": Look(
        domain=2, warmth=(-0.4, 0.6), ambient=(0.3, 0.55), stretch=(0.85, 1.15), patterned=0.2, odd_colour=0.05,
        saturation=(0.75, 1.15), noise=(0.01, 0.03), blur=(0.35, 0.7), cast=0.06, jpeg=(75, 95), flash=0.85,
    ),
    "benchmark": Look(
        domain=3, warmth=(-0.6, 0.1), ambient=(0.3, 0.6), stretch=(0.95, 1.25), patterned=0.3, odd_colour=0.08,
        saturation=(0.75, 1.05), noise=(0.008, 0.02), blur=(0.3, 0.6), cast=0.04, jpeg=(80, 95), flash=0.9,
    ),
}  # fmt: skip
"""Domain -> look. All benchmarks have the same look and different seeds."""
SHIFTED = {
    "dusk": replace(
        LOOKS["benchmark"],
        warmth=(0.5, 0.9), ambient=(0.1, 0.2), saturation=(0.35, 0.6), noise=(0.02, 0.04), blur=(0.5, 0.8), cast=0.1,
        flash=0.0,
    )
}  # fmt: skip
"""Further looks of the benchmarks' domain, for studies: the same scenes and cameras in different light."""


class Stylist:
    """Draws the random numbers, colours and paints of one scene."""

    def __init__(self, rng: np.random.Generator, look: Look):
        self.rng = rng
        self.look = look
        self._drawn: list[float] = []
        self.saturation = self.uniform(*look.saturation)

    def random(self) -> float:
        """A number in 0..1. Numbers are drawn in blocks; single calls would take a tenth of the rendering time."""
        if not self._drawn:
            self._drawn = self.rng.random(512).tolist()
        return self._drawn.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number in `low`..`high`."""
        return low + (high - low) * self.random()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    def pick(self, options):
        """A random element of the sequence `options`."""
        return options[int(self.random() * len(options))]

    def shade(self, colour: str | Vector, spread: float = 0.15) -> Vector:
        """A random variation of a named colour or RGB."""
        red, green, blue = COLOURS[colour] if isinstance(colour, str) else colour
        gain = 1 + self.uniform(-spread, spread)
        grey = (red + green + blue) / 3
        s = self.saturation * gain
        base = grey * gain
        a, b, c = (base + spread * (0.4 * self.random() - 0.2) for _ in range(3))
        return (a + s * (red - grey), b + s * (green - grey), c + s * (blue - grey))

    def colour(self, typical: str) -> str:
        """A colour name, mostly one of the space-separated `typical` ones; earlier ones are more likely."""
        if self.chance(self.look.odd_colour):
            return self.pick(tuple(COLOURS))
        words = typical.split()
        return words[int(len(words) * self.random() ** 3)]

    def plain(self, colour: str | Vector, grain: float = 0.04, glow: float = 0.0, spread: float = 0.15) -> Paint:
        """Paint of one colour."""
        return Paint(self.shade(colour, spread), grain=grain, glow=glow)

    def mixed(self, colour: str | Vector, other: str | Vector, pattern: str, size: float, grain: float = 0.03) -> Paint:
        """Paint of two colours in a pattern."""
        return Paint(self.shade(colour), self.shade(other), pattern, size, grain)

    def fabric(self, colour: str, share: float | None = None) -> Paint:
        """Fabric of a colour, sometimes patterned. share: probability of a pattern (default: the look's)."""
        base = self.shade(colour)
        if not self.chance(self.look.patterned if share is None else share):
            return Paint(base, grain=0.05)
        if self.chance(0.5):
            other = self.shade(self.pick(tuple(COLOURS)))
        else:
            gain = 0.6 if sum(base) > 1.2 else 1.7
            other = tuple(channel * gain + (0.08 if gain > 1 else 0) for channel in base)
        return Paint(base, other, self.pick(FABRICS), self.uniform(0.07, 0.25), 0.04)

    def wood(self, colour: str | Vector = "brown") -> Paint:
        """Wood with grain."""
        base = self.shade(colour, 0.3)
        return Paint(base, tuple(0.68 * channel for channel in base), "wood", self.uniform(0.08, 0.2), 0.03)
