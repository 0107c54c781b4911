"""The messages of all errors, read from the code, for the sections of docs/troubleshooting.md.

A section of that page has a comment `<!-- errors: PATTERN -->`. The pattern is searched in `FOLDER/MODULE.py: MESSAGE`;
a message is in the first section whose pattern matches. The site lists the messages in place of the comment. Here,

    python docs/figures/troubleshooting.py

prints the page with them.
"""

import ast
import itertools
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs/troubleshooting.md"
SECTION = re.compile(r"<!-- errors: (.*?) -->", re.S)
ERRORS = {"CliptexError", "ConfigError", "NotFinite", "MissingInput", "WorkflowError"}
"""Their first argument is a line, or the lines, that a user reads."""
IN_CONFIGURATIONS = {"ValueError", "PydanticCustomError"}
"""In cliptex/config/: pydantic calls these, and the line names the key."""
MOST = 8
"""Variants of one message that are listed."""
MORE = 4
"""Names that are followed from a message to the text that they stand for."""


def page() -> str:
    """docs/troubleshooting.md with the messages of each section."""
    text = PAGE.read_text(encoding="utf-8")
    listed = by_section(text)
    return SECTION.sub(lambda match: "\n".join(f"- `` {line} ``" for line in listed[match[1]]), text)


def by_section(text: str) -> dict[str, list[str]]:
    """The messages of each pattern of the page. Raises ValueError for a message in no section."""
    found: dict[str, list[str]] = {pattern: [] for pattern in SECTION.findall(text)}
    for place, message in messages():
        section = next((pattern for pattern in found if re.search(pattern, f"{place}: {message}")), None)
        if section is None:
            raise ValueError(
                f"{place}: {message!r} is in no section of docs/troubleshooting.md; extend a pattern there"
            )
        found[section].append(message)
    return {pattern: sorted(set(lines), key=str.casefold) for pattern, lines in found.items()}


def messages() -> Iterator[tuple[str, str]]:
    """(module, message) of every error, with ‹names› in place of values; several where a part has several texts."""
    for path in sorted((ROOT / "cliptex").rglob("*.py")):
        module = Module(path)
        for call, function in module.errors():
            for text in itertools.islice(module.texts(call, function, MORE), MOST):
                line = re.sub(r"\{(\w+)\}", r"‹\1›", " ".join(text.split()))  # pydantic fills in the braces
                if _says_something(line):
                    yield str(path.relative_to(ROOT / "cliptex")), line


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


class Module:
    """A module of the package: its errors, and the texts that names in it stand for."""

    def __init__(self, path: Path):
        self.path, self.tree = path, parsed(path)
        self.top = {
            target.id: node.value
            for node in self.tree.body
            if not isinstance(node, ast.For)
            for target in _targets(node)
        }
        self.functions = {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)}
        self.imported = {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cliptex.")
            for alias in node.names
        }

    def errors(self) -> Iterator[tuple[ast.expr, ast.AST]]:
        """The text of each error, and the function in which it is raised."""
        names = ERRORS | (IN_CONFIGURATIONS if self.path.parent.name == "config" else set())
        for function in self.functions.values():
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in names
                    and node.args
                ):
                    yield node.args[node.func.id == "PydanticCustomError"], function

    def texts(self, node: ast.expr, function: ast.AST, more: int) -> Iterator[str]:
        """What an expression may say. more: how many names are still followed."""
        match node:
            case ast.Constant(value=value):
                yield str(value)
            case ast.JoinedStr(values=parts):
                yield from self._joined(parts, function, more)
            case ast.FormattedValue(value=value):
                yield from self.texts(value, function, more)
            case ast.List(elts=parts) | ast.Tuple(elts=parts) if parts:
                yield from itertools.chain.from_iterable(self.texts(part, function, more) for part in parts)
            case ast.ListComp(elt=part):
                yield from self.texts(part, function, more)
            case ast.BinOp(left=left, op=ast.Add(), right=right) if _has_text(left) or _has_text(right):
                yield from self._joined([left, right], function, more)
            case ast.IfExp(body=body, orelse=other):
                yield from self.texts(body, function, more)
                yield from self.texts(other, function, more)
            case ast.Name(id=name) if more and (found := list(self._said(name, function, more - 1))):
                yield from found
            case ast.Call(func=ast.Name(id=name)) if more and (found := list(self._returned(name, more - 1))):
                yield from found
            case _:
                yield f"‹{_name(node)}›"

    def _joined(self, parts: list[ast.expr], function: ast.AST, more: int) -> Iterator[str]:
        texts = [list(itertools.islice(self.texts(part, function, more), MOST)) for part in parts]
        yield from map("".join, itertools.product(*texts))

    def _said(self, name: str, function: ast.AST, more: int) -> Iterator[str]:
        """The texts that a name stands for, in the function, the module, or where it is imported from."""
        local = [
            node.iter if isinstance(node, ast.For) else node.value
            for node in ast.walk(function)
            if name in {target.id for target in _targets(node)}
        ]
        values = local or ([self.top[name]] if name in self.top else [])
        for value in filter(_may_have_text, values):
            yield from filter(_is_more_than_a_name, self.texts(value, function, more))
        if not values and name in self.imported:
            module, other = self._source(name)
            yield from module._said(other, module.tree, more)

    def _returned(self, name: str, more: int) -> Iterator[str]:
        """The texts that a function of the package returns or yields."""
        if name in self.functions:
            for node in ast.walk(self.functions[name]):
                if isinstance(node, ast.Return | ast.Yield | ast.YieldFrom) and _may_have_text(node.value):
                    yield from filter(_is_more_than_a_name, self.texts(node.value, self.functions[name], more))
        elif name in self.imported:
            module, other = self._source(name)
            yield from module._returned(other, more)

    def _source(self, name: str) -> tuple["Module", str]:
        module, other = self.imported[name]
        path = ROOT / module.replace(".", "/")
        return Module(path / "__init__.py" if path.is_dir() else path.with_suffix(".py")), other


def _targets(node: ast.AST) -> list[ast.Name]:
    """The names that a statement or expression gives a value."""
    match node:
        case ast.Assign(targets=[ast.Name() as target]) | ast.AnnAssign(target=ast.Name() as target, value=ast.expr()):
            return [target]
        case ast.NamedExpr(target=target) | ast.For(target=ast.Name() as target):
            return [target]
    return []


def _has_text(node: ast.expr) -> bool:
    """Whether an expression is a text that is written in the code, if only in part."""
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right) | ast.IfExp(body=left, orelse=right):
            return _has_text(left) or _has_text(right)
    return False


def _may_have_text(node: ast.expr | None) -> bool:
    """Whether an expression is such a text, or a call of a function that may return one."""
    return node is not None and (_has_text(node) or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)))


def _is_more_than_a_name(text: str) -> bool:
    return not re.fullmatch("‹[^›]*›", text)


def _says_something(text: str) -> bool:
    """Whether a text has words in addition to names of values."""
    return bool(re.search(r"[a-z]{3}", re.sub("‹.*?›", "", text)))


def _name(node: ast.expr) -> str:
    """A short name for the value of an expression."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name.strip("_")
        case ast.Subscript(slice=ast.Constant(value=str() as name)):
            return name
        case ast.Subscript(value=value) | ast.Starred(value=value) | ast.UnaryOp(operand=value):
            return _name(value)
        case ast.Call(func=ast.Name(id="len" | "int" | "sum" | "min" | "max"), args=[_, *_]):
            return "number"
        case ast.Call(func=ast.Attribute(attr="join"), args=[value]) | ast.Call(args=[value]):
            return _name(value)
        case ast.Call(func=value):
            return _name(value)
        case ast.BinOp(left=left, op=ast.Div()) if not isinstance(left, ast.Constant):
            return _name(left)
        case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
            return _name(value)
    return "value"


if __name__ == "__main__":
    print(page())
