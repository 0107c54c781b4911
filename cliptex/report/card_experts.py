"""The parts of a model card on experts: their table, and the licences of what a model learned from."""

from typing import Any

from cliptex.core.licences import is_non_commercial
from cliptex.report.seen import SeenData
from cliptex.report.table import markdown_text as md


def experts_section(stores: list[dict[str, Any]], seen: SeenData | None = None) -> str:
    """Table of the experts behind label stores (their indexes), Markdown; empty without any. seen: what the experts
    were trained on; if none has training sets, there is no such column."""
    if not stores:
        return ""
    lines = [
        "## Experts\n\n| label store | task | expert | weights | SHA-256 | licence of the weights | images labelled |"
    ]
    lines += ["|---|---|---|---|---|---|---|"]
    has_sets = seen is not None and any(seen.sets.get(store["expert"]) for store in stores)
    if has_sets:
        lines = [f"{lines[0]} trained on |", f"{lines[1]}---|"]
    for store in stores:
        random, digest = store.get("weights") == "random", store.get("weights_sha256")
        weights = "**RANDOM: untrained, for tests only**" if random else md(str(store.get("weights")))
        sha = f"`{md(digest[:12])}`" if digest else "none"
        source = f", taken from {md(store['from']['source'])}" if store.get("from") else ""
        lines.append(
            f"| {store['store']} | {md(store['task'])} | {md(store['expert'])}{source} | {weights} | {sha} |"
            f" {md(str(store['licence']))} | {store['labelled']:,} of {store['images']:,} |"
        )
        if has_sets:
            lines[-1] += f" {md(seen.words(store['expert']))} |"
    return "\n".join(lines) + "\n"


def licence_section(licence: str, stores: list[dict[str, Any]]) -> str:
    """The licences of the weights (empty: none was chosen) and of what they learned from, Markdown."""
    chosen = (
        f"The licence of these weights is {md(licence)}." if licence else "No licence was chosen for these weights."
    )
    text = f"## Licence\n\n{chosen} Their sources have their own terms: the images and captions, the weights"
    text += " that training started from"
    if stores:
        each = dict.fromkeys(md(f"{store['expert']}: {store['licence']}") for store in stores)
        text += f", and the experts ({'; '.join(each)})"
    limited = non_commercial(stores)
    return f"{text}.\n" + (f"\n**{limited[:1].upper()}{limited[1:]}.** Ask before commercial use.\n" if limited else "")


def non_commercial(stores: list[dict[str, Any]]) -> str:
    """A clause on the teachers whose licence excludes commercial use; empty without any."""
    limited = dict.fromkeys(
        md(f"{store['expert']} ({store['licence']})") for store in stores if is_non_commercial(store["licence"])
    )
    clause = "these weights learned from labels whose licence excludes commercial use"
    return f"{clause}: {', '.join(limited)}" if limited else ""
