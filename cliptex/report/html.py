"""What the pages share: the template environment, the style sheet, the script, charts as images."""

import base64
import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cliptex.core.redact import escape_controls
from cliptex.evaluation.drawing import embedded
from cliptex.report.evaluators import Pair
from cliptex.report.figures import ON_DARK, Chart, on_dark

SCRIPTS = ("tables", "charts", "choices", "gallery", "contents")
"""Files of cliptex/report/scripts/, in the order in which they run."""


def render(template: str, **values: Any) -> str:
    """Render a template of cliptex/report/; text is escaped. Templates and macros have `css`, `script`, the script's
    digest for the policy by which no other script runs, and `on_dark`, the colours that it replaces on a dark page."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        loader=jinja2.PackageLoader("cliptex.report", ""),
    )
    folder = files("cliptex.report")
    script = "".join(folder.joinpath(f"scripts/{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    environment.globals |= {
        "on_dark": json.dumps(ON_DARK),
        "css": Markup(folder.joinpath("page.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    return environment.get_template(template).render(**values)


def _shown(value: Any) -> Any:
    """Text without control characters; a mark, a number and its unit stay on one line."""
    if type(value) is not str:
        return value
    return re.sub(r"(?<=[±▲△▼▽=]) | (?=[%↑↓])", "\u00a0", escape_controls(value))


def embedded_chart(
    name: str, caption: str, alt: str, svg: str, pairs: Mapping[Pair, Chart] | None = None
) -> dict[str, Any]:
    """A chart for the macro `chart`. svg: for a light page. pairs: the same of other models; they are compressed, since
    the reader sees one at a time."""
    light, dark = (embedded(text.encode(), "image/svg+xml") for text in (svg, on_dark(svg)))
    others = [
        {"subject": subject, "reference": reference, "caption": chart.caption, "alt": chart.alt}
        | {"zlib": base64.b64encode(zlib.compress(chart.svg.encode(), 9)).decode()}
        for (subject, reference), chart in (pairs or {}).items()
    ]
    return {"name": name, "caption": caption, "alt": alt, "light": light, "dark": dark, "pairs": others}
