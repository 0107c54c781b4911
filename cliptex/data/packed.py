"""Memory-compact lists and mappings of strings: one joined string, split on access."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any


class Keys(Sequence[str]):
    """An immutable list of strings without line breaks. Equal to a list of the same strings."""

    __slots__ = ("_count", "_text")

    def __init__(self, keys: Iterable[str]):
        keys = list(keys)
        self._count, self._text = len(keys), "\n".join(keys)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._text.split("\n") if self._count else ())

    def __getitem__(self, index: int | slice) -> Any:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, (Keys, list)) else NotImplemented

    __hash__ = None

    def __repr__(self) -> str:
        return repr(list(self))


class Reasons(Mapping[str, str]):
    """An immutable mapping of strings to a few distinct strings. Equal to a dictionary with the same items."""

    __slots__ = ("_codes", "_keys", "_reasons")

    def __init__(self, reasons: Mapping[str, str]):
        self._keys = Keys(reasons)
        self._reasons = list(dict.fromkeys(reasons.values()))
        numbers = {reason: number for number, reason in enumerate(self._reasons)}
        self._codes = array("H", (numbers[reason] for reason in reasons.values()))

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __getitem__(self, key: str) -> str:
        return dict(self.items())[key]

    def items(self) -> Any:
        """The items, unpacked once."""
        return dict(zip(self._keys, (self._reasons[code] for code in self._codes), strict=True)).items()

    def values(self) -> list[str]:
        """The values, in the order of keys."""
        return [self._reasons[code] for code in self._codes]

    def __repr__(self) -> str:
        return repr(dict(self.items()))
