"""Where a label fits: how much room text takes, and the first place that nothing else has."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

FONT = 12  # the size of all text in charts, in units of their view box
WIDE_LETTER = 0.62  # of the font size; most letters are narrower


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def at(cls, x: float, y: float, reach: float) -> "Box":
        return cls(x - reach, y - reach, x + reach, y + reach)

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def holds(self, other: "Box") -> bool:
        inside = self.left <= other.left and other.right <= self.right
        return inside and self.top <= other.top and other.bottom <= self.bottom


def text_width(text: str) -> float:
    return WIDE_LETTER * FONT * len(text)


def text_box(text: str, x: float, y: float, anchor: str = "start") -> Box:
    """What text with its baseline at (x, y) covers, at most."""
    width = text_width(text)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return Box(left, y - 0.85 * FONT, left + width, y + 0.3 * FONT)


Place = tuple[float, float, str]  # x, y, anchor


def around(x: float, y: float) -> list[Place]:
    """Places for the label of a point, the nearest first."""
    places = []
    for distance in (9, 20, 32, 46, 62, 80, 100, 125, 150):
        aside, low = 0.7 * distance, 4 + 0.7 * distance
        places += [
            (x + distance, y + 4, "start"), (x - distance, y + 4, "end"),
            (x, y - distance, "middle"), (x, y + distance + 8, "middle"),
            (x + aside, y - aside, "start"), (x + aside, y + low, "start"),
            (x - aside, y - aside, "end"), (x - aside, y + low, "end"),
        ]  # fmt: skip
    return places


def best_place(
    text: str, places: Sequence[Place], taken: Iterable[Box], frame: Box, cost: Callable[[Box], float] = lambda box: 0.0
) -> tuple[Place, Box]:
    """The first of `places` where the text is in the frame and on nothing; else where it covers least. cost: of being
    there, besides."""
    taken = list(taken)

    def covered(place: Place) -> float:
        box = text_box(text, *place)
        out_of_frame = (box.right - box.left) * (box.bottom - box.top) - box.overlap(frame)
        return round(sum(box.overlap(other) for other in taken) + 100 * out_of_frame + cost(box), 6)

    place = min(places, key=covered)
    return place, text_box(text, *place)


def nearest(x: float, y: float, box: Box) -> tuple[float, float]:
    """The place in the box that is nearest to (x, y)."""
    return min(max(x, box.left), box.right), min(max(y, box.top), box.bottom)


def between(one: tuple[float, float], other: tuple[float, float]) -> list[Box]:
    """Some small boxes on the line between two places."""
    (x1, y1), (x2, y2) = one, other
    return [Box.at(x1 + (x2 - x1) * part / 8, y1 + (y2 - y1) * part / 8, 1) for part in range(1, 8)]
