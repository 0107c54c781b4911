"""What the report's page and the studies' pages share: the template environment, the style sheet, charts as images."""

import re
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from cliptex.core.redact import escape_controls
from cliptex.evaluation.drawing import embedded
from cliptex.report.figures import on_dark


def render(template: str, **values: Any) -> str:
    """Render a template of cliptex/report/ with the style sheet as `css`; text is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        loader=jinja2.PackageLoader("cliptex.report", ""),
    )
    css = Markup(files("cliptex.report").joinpath("page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, **values)


def _shown(value: Any) -> Any:
    """Text without control characters; a mark, a number and its unit stay on one line."""
    if type(value) is not str:
        return value
    return re.sub(r"(?<=[±▲△▼▽=]) | (?=[%↑↓])", "\u00a0", escape_controls(value))


def embedded_chart(name: str, caption: str, alt: str, svg: str) -> dict[str, str]:
    """A chart for the macro `chart`. svg: for a light page."""
    light, dark = (embedded(text.encode(), "image/svg+xml") for text in (svg, on_dark(svg)))
    return {"name": name, "caption": caption, "alt": alt, "light": light, "dark": dark}
