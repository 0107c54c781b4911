"""Names of licences: the Hugging Face hub's identifiers, and which exclude commercial use."""

import re
from typing import Any

NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0
cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0
epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research
intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
unlicense zlib pddl lgpl-lr
"""
HUB = frozenset(NAMES.split())
"""Identifiers of the hub's "Licenses" page (huggingface.co/docs/hub/repositories-licenses)."""
EXCLUDES = re.compile(
    r"(?<![a-z])nc(?![a-z])|non-?commercial|research-only|(?:for|only)-research|research-(?:use|purposes)|academic"
    r"|(?:h|intel)-research|apple-amlr"
)
"""In a licence's name, after `_plain`."""


def hub_terms(licence: str) -> dict[str, Any]:
    """A licence as metadata of a card on the hub, which requires a name and a link for one that it does not know."""
    name = _plain(licence)
    if name in HUB:
        return {"license": name}
    return {
        "license": "other",
        "license_name": re.sub(r"[^a-z0-9.]+", "-", name).strip("-"),
        "license_link": "README.md",
    }


def is_stated(licence: str | None) -> bool:
    """Whether a licence is named at all."""
    return bool(licence) and _plain(str(licence)) not in ("", "unknown", "none")


def is_non_commercial(licence: str | None) -> bool:
    """Whether a licence's name says that it excludes commercial use, such as "CC-BY-NC-4.0" or "research only"."""
    return EXCLUDES.search(_plain(licence or "")) is not None


def _plain(licence: str) -> str:
    return re.sub(r"[\s_]+", "-", licence.strip().lower()).replace("-license-", "-").replace("-licence-", "-")
