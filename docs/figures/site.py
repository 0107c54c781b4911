"""Hooks of the site (mkdocs.yml): pages from outside docs/, such as the README, the configuration and the command line.

Pages link to files of the repository; these hooks rewrite such links for the site. A linked file that is not a page is
copied into the site.
"""

import inspect
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import troubleshooting
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from cliptex.cli import app

ROOT = Path(__file__).parent.parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "config/README.md": "configuration.md",
    "examples/edges/README.md": "examples/edges.md",
    "examples/mmseg/README.md": "examples/mmseg.md",
}
"""Markdown file of the repository -> its page in the site."""
EMPTY_HEAD = re.compile(r"<th([^>]*)></th>")
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, the page of the command line, and every other file that a page links to."""
    for source, page in PAGES.items():
        if (ROOT / source).exists():
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    files.append(File.generated(config, "commands.md", content=command_line()))
    in_nav = set(_pages(config.nav))
    guides = next(entry["Guides"] for entry in config.nav if "Guides" in entry)
    pages = [file.src_uri for file in files.documentation_pages()]
    # the page of results links to the tables of studies
    guides += [page for page in pages if page not in in_nav and not page.startswith("results/")]
    for file in list(files.documentation_pages()):
        for link in LINK.findall(file.content_string):
            target = _in_repository(file.src_uri, link)
            uri = _in_site(target)
            if (ROOT / target).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, content=(ROOT / target).read_bytes()))
    return files


def _pages(nav: Any) -> Iterator[str]:
    """The pages in a part of the navigation."""
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _pages(part)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links of the repository as links of the site; list the errors under their remedies."""
    uri = page.file.src_uri
    if uri == troubleshooting.PAGE.name:
        markdown = troubleshooting.page()

    def in_site(match: re.Match[str]) -> str:
        return posixpath.relpath(_in_site(_in_repository(uri, match[0])), posixpath.dirname(uri) or ".")

    return LINK.sub(in_site, markdown)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out the page 404, whose paths are those of a server: the site is opened from disk."""
    config.theme.static_templates.discard("404.html")
    return config


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """An empty corner of a table heads nothing."""
    return EMPTY_HEAD.sub(r"<td\1></td>", html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Give the theme's search dialogue a name."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"')


def command_line() -> str:
    """The page of all commands and options."""
    command = typer.main.get_command(app)
    return "# Command line\n\n" + "".join(
        _sections(command, command.make_context("cliptex", [], resilient_parsing=True))
    )


def _sections(command: Any, context: Any) -> Iterator[str]:
    """Help, usage and options of a command, and those of its subcommands."""
    if context.parent is not None:
        yield f"\n## {context.command_path}\n\n"
    yield f"{inspect.cleandoc(command.help)}\n\n"
    yield f"```console\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n\n"
    yield "| option | meaning |\n|---|---|\n"
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            name, meaning = (text.replace("|", "\\|") for text in record)
            yield f"| `{name}` | {meaning} |\n"
    for name, sub in getattr(command, "commands", {}).items():
        yield from _sections(sub, sub.make_context(name, [], parent=context, resilient_parsing=True))


def _in_repository(page: str, link: str) -> str:
    """Path in the repository of a link in a page of the site."""
    source = next((source for source, uri in PAGES.items() if uri == page), f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _in_site(path: str) -> str:
    """Path in the site of a file or folder of the repository."""
    for name in (path, f"{path}/README.md"):
        if name in PAGES:
            return PAGES[name]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}"
