"""Draw how the folders of the package depend on each other, from the imports of all its modules:

python docs/figures/folders.py docs/images/folders.svg

A folder may import only from folders above it. Any other import is an error that names it, lazy imports included.
"""

import ast
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).parent.parent.parent / "cliptex"
FOLDERS = {
    "core": "files, paths, errors, progress, provenance, plugins",
    "config": "every key, its type, default and meaning",
    "benchmarks": "axis: readers of official layouts",
    "data": "pairs and shards, downloads, the miniature",
    "tasks": "axis: what a pseudo-label is",
    "experts": "axis: where a pseudo-label comes from",
    "models": "the CLIP, its heads, features, inference",
    "labels": "writing, store, index, export, audit",
    "evaluation": "axis: probe tasks; zero-shot, retrieval, fine-tuning",
    "training": "trainer, loader, checkpoints, validation",
    "report": "statistics, tables, figures, page, studies",
    "cluster": "launch, GPU, plan, doctor",
    "cli": "the command line",
}
"""From the first to the last: a folder may import only from those before it."""
ORDER = list(FOLDERS)
LEFT, TOP, WIDTH, HEIGHT, STEP = 10, 10, 400, 34, 46
INK, FAINT, FILL, AXIS = "#1d2129", "#5c6370", "#e8f1f8", "#fdf1da"


def imports(package: Path = PACKAGE) -> Iterator[tuple[Path, int, str]]:
    """(module, line, imported module) for every import within the package, lazy ones included."""
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cliptex":
                for alias in node.names:
                    yield path, node.lineno, f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "cliptex":
                        yield path, node.lineno, alias.name


def edges(package: Path = PACKAGE) -> tuple[set[tuple[str, str]], list[str]]:
    """(folder, folder it imports from), and the imports that are not allowed."""
    found, errors = set(), []
    for path, line, module in imports(package):
        folder = path.relative_to(package).parts[0]
        imported = [*module.split("."), ""][1]
        if folder not in ORDER or imported not in ORDER or folder == imported:
            continue  # the package's face, versions.py
        if ORDER.index(imported) > ORDER.index(folder):
            errors.append(
                f"{path.relative_to(package.parent)}:{line}: {folder} may not import from {imported} ({module})"
            )
        found.add((folder, imported))
    return found, errors


def reduced(found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without the arrows that a longer path implies."""

    def reaches(start: str, end: str) -> bool:
        return any(a == start and (b == end or reaches(b, end)) for a, b in found)

    return {(a, b) for a, b in found if not any(a == c and d != b and reaches(d, b) for c, d in found)}


def svg(found: set[tuple[str, str]]) -> str:
    """The drawing: a box per folder, an arrow from a folder to each one that it imports from and no other implies."""
    height = 2 * TOP + STEP * len(ORDER)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 60} {height}" '
        'font-family="Segoe UI, Roboto, Helvetica Neue, Arial, sans-serif">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{FAINT}"/></marker></defs>',
        "<title>Folders of the package; an arrow points from a folder to one that it imports from</title>",
    ]
    for number, (name, text) in enumerate(FOLDERS.items()):
        top = TOP + STEP * number
        fill = AXIS if text.startswith("axis") else FILL
        lines.append(
            f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{fill}" stroke="{FAINT}"/>'
            f'<text x="{LEFT + 12}" y="{top + 22}" font-size="15" font-weight="bold" fill="{INK}">{name}</text>'
            f'<text x="{LEFT + 110}" y="{top + 22}" font-size="12.5" fill="{FAINT}">{escape(text)}</text>'
        )
    for start, end in sorted(found, key=lambda edge: (ORDER.index(edge[0]), ORDER.index(edge[1]))):
        low, high = (TOP + STEP * ORDER.index(name) + HEIGHT / 2 for name in (start, end))
        x, bulge = LEFT + WIDTH, 12 + 10 * (ORDER.index(start) - ORDER.index(end))
        lines.append(
            f'<path d="M{x} {low - 5}C{x + bulge} {low - 5} {x + bulge} {high + 5} {x + 2} {high + 5}" fill="none" '
            f'stroke="{FAINT}" stroke-width="1.2" marker-end="url(#head)"/>'
        )
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Draw, or exit with the imports that are not allowed."""
    found, errors = edges()
    if errors:
        sys.exit("\n".join(errors))
    Path(sys.argv[1]).write_text(svg(reduced(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
