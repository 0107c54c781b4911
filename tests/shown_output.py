"""Outputs that pages show: a block `text` right after a block of commands or Python is what the block prints."""

import re
from pathlib import Path

CODE_AND_OUTPUT = re.compile(r"^```(?:bash|python)\n((?:(?!```).*\n)+)```\n\n```text\n((?:(?!```).*\n)+)```", re.M)
VARIES = [
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b|\b[0-9a-f]{12}\b", "0"),  # UUIDs, the beginning of digests
    (r"\d[\d.,]*(e[-+]\d+)?(?<!\.)(?<!,)", "0"),
    (r"\b[kMG]B\b", "bytes"),
]
"""Pages show the default run, tests a smaller one."""


def shown_outputs(page: Path) -> dict[str, str]:
    """The blocks of code of a page that are followed by their output: code -> output."""
    return dict(CODE_AND_OUTPUT.findall(page.read_text(encoding="utf-8")))


def agrees(shown: str, printed: str) -> bool:
    """Whether a program printed what a page shows, up to numbers. `...` stands for any text, alone in a line for any
    lines."""
    parts = []
    for line in _masked(shown).splitlines():
        text = "(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + "\n"
        parts.append(text)
    return re.fullmatch("".join(parts), _masked(printed) + "\n") is not None


def _masked(text: str) -> str:
    text = "\n".join(line.rstrip() for line in text.strip().splitlines())
    for pattern, stand_in in VARIES:
        text = re.sub(pattern, stand_in, text)
    return text
