"""Captions of scenes in short English, and two kinds of noise that occur in web captions.

Captions never say "left" or "right", so that they stay true for flipped images.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cliptex.data.miniature.looks import Stylist

PLACES = {
    "living_room": ("living room", "living room", "lounge"),
    "bedroom": ("bedroom", "bedroom", "cosy bedroom"),
    "kitchen": ("kitchen", "kitchen", "modern kitchen"),
    "office": ("office", "office", "modern office"),
    "corridor": ("corridor", "corridor", "hallway"),
    "street": ("street", "street", "city street"),
    "beach": ("beach", "beach", "sandy beach"),
    "mountain": ("mountain", "mountain", "mountain landscape"),
    "park": ("park", "park", "green park"),
    "desert_road": ("desert road", "desert road", "road in the desert"),
}

GENERIC = (
    "photo of the day",
    "image for sale",
    "click to enlarge",
    "best wallpaper ever",
    "stock photo, royalty free",
    "new arrivals this week",
    "picture taken yesterday",
    "see more in the gallery",
    "download the full size image",
    "my favorite one so far",
)

WORDS = {
    "tv": ("tv", "television"),
    "couch": ("couch", "sofa"),
    "refrigerator": ("refrigerator", "fridge"),
    "dining table": ("dining table", "table"),
    "sports ball": ("ball", "sports ball"),
    "windowpane": ("window",),
    "signboard": ("sign",),
    "box": ("box",),
}

CONTEXT = (
    "windowpane", "door", "painting", "curtain", "rug", "lamp", "cabinet", "shelf", "wardrobe", "desk", "box", "column",
    "stairs", "mirror", "barrel", "radiator", "tree", "palm", "rock", "building", "house", "fence", "streetlight",
    "signboard", "sea", "hill",
)  # fmt: skip
"""Kinds of scenery that captions may mention."""

IRREGULAR = {"person": "people", "man": "men", "woman": "women", "shelf": "shelves", "box": "boxes", "bus": "buses"}
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


@dataclass(frozen=True)
class Seen:
    """A visible object, as described in captions."""

    kind: str
    name: str
    colour: str
    pixels: int
    depth: float
    on: str | None


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _plural(noun: str) -> str:
    if noun.endswith("stairs"):
        return noun
    head, _, last = noun.rpartition(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    else:
        last += "es" if last.endswith(("s", "x", "ch", "sh")) else "s"
    return f"{head} {last}".strip()


def _noun(s: Stylist, seen: Seen) -> str:
    if seen.name != seen.kind and s.chance(0.6):
        return seen.name
    return s.pick(WORDS.get(seen.kind, (seen.kind,)))


def _phrase(s: Stylist, seen: Seen, count: int = 1) -> str:
    noun = _noun(s, seen)
    if count > 1:
        return f"{NUMBERS.get(count, 'several')} {_plural(noun)}"
    if seen.kind == "person":
        return f"{_article(noun)} in {seen.colour}" if s.chance(0.5) else _article(noun)
    return _article(f"{seen.colour} {noun}" if s.chance(0.6) else noun)


def _scenery(s: Stylist, kind: str) -> str:
    word = s.pick(WORDS.get(kind, (kind,)))
    return f"the {word}" if word == "sea" else word if word == "stairs" else _article(word)


def describe(s: Stylist, category: str, things: list[Seen], scenery: list[str]) -> str:
    """A true caption of the scene.

    things: visible objects, largest first. scenery: visible kinds of CONTEXT, largest first.
    """
    place = s.pick(PLACES[category])
    where = f"{'on' if category in ('street', 'beach', 'desert_road') else 'in'} {_article(place)}"
    if category == "mountain":
        where = s.pick(("on a mountain", "in the mountains", "in a mountain landscape"))
    if place == "road in the desert":
        where = "on a road in the desert"
    counts = Counter(seen.kind for seen in things)
    largest = {seen.kind: seen for seen in reversed(things)}
    firsts = [largest[kind] for kind in counts][: s.pick((1, 2, 2, 3, 3))]
    parts = [_phrase(s, seen, counts[seen.kind]) for seen in firsts]
    supports = {first.on for first in firsts}
    extra = [_scenery(s, kind) for kind in scenery[:2] if kind not in supports and s.chance(0.45)]
    if not parts:
        extra = [_scenery(s, kind) for kind in scenery[:2]]
        scene = s.pick(
            (_article(place), f"view of {_article(place)}", f"photo of {_article(place)}", f"an empty {place}")
        )
        return f"{scene} with {' and '.join(extra)}" if extra else scene
    first = firsts[0]
    if len(firsts) == 1 and counts[first.kind] == 1 and first.on and s.chance(0.6):
        parts[0] = f"{parts[0]} on {_article(s.pick(WORDS.get(first.on, (first.on,))))}"
    elif len(firsts) == 2 and counts[first.kind] == counts[firsts[1].kind] == 1 and s.chance(0.6):
        relation = "next to"
        if abs(first.depth - firsts[1].depth) > 0.35 * min(first.depth, firsts[1].depth):
            relation = "in front of" if first.depth < firsts[1].depth else "behind"
        parts = [f"{parts[0]} {relation} {parts[1]}"]
    parts += extra[: 1 if len(parts) > 1 else 2]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    form = s.random()
    if form < 0.5:
        return f"{listed} {where}"
    if form < 0.7:
        there = "there are" if counts[first.kind] > 1 else "there is"
        return f"{s.pick(('a photo of', 'a picture of', there))} {listed} {where}"
    if form < 0.9:
        return f"{_article(place)} with {listed}"
    return listed


def caption_noise(rng: np.random.Generator, share: float) -> str | None:
    """Draw the noise of a caption: "generic" or "swapped", each with probability `share` / 2, or None (no noise)."""
    draw = rng.random()
    if draw >= share:
        return None
    return "generic" if draw < share / 2 else "swapped"
