"""The configuration explained: one table a section, from the models in `cliptex.config`."""

import json
from typing import Any

from cliptex.config import Config

HEAD = """# Configuration

`config.yaml` is the default run, the miniature. Another file is laid over it with `--configfile`, a single value with
`--config 'train={batch_size: 64}'`. Unknown keys and wrong types are errors that name the key.

- `test.yaml`: the same run in a minute or two, for tests; its numbers mean nothing
- `studies/seeds.yaml`: three seeds
- `studies/controls.yaml`: shuffled labels, exact labels, equal compute
- `studies/*.yaml` with a section `study`: for the target `study` (docs/studies.md)

Made by `cliptex config-reference > config/README.md`.
"""


def reference() -> str:
    """Markdown: every section of the configuration with its keys, types, defaults and meanings."""
    schema = Config.model_json_schema()
    parts = [HEAD]
    for section in ("Config", *schema["$defs"]):
        body = schema if section == "Config" else schema["$defs"][section]
        title = "Top level" if section == "Config" else section
        parts.append(f"\n## {title}\n\n{body.get('description', '').splitlines()[0]}\n")
        parts.append("\n| key | type | default | meaning |\n|---|---|---|---|\n")
        for key, value in body["properties"].items():
            default = json.dumps(value["default"]) if "default" in value else "required"
            if default.startswith("{") and len(default) > 30:
                default = "see the section"
            meaning = value.get("description", "").replace("|", "\\|").replace("\n", " ")
            parts.append(f"| `{key}` | {_kind(value)} | {default} | {meaning} |\n")
    return "".join(parts)


def _kind(value: dict[str, Any]) -> str:
    if "$ref" in value:
        return value["$ref"].rpartition("/")[2]
    if "anyOf" in value:
        return " or ".join(_kind(option) for option in value["anyOf"])
    if "enum" in value or "const" in value:
        return " or ".join(f"`{option}`" for option in value.get("enum", [value.get("const")]))
    if value.get("type") == "array":
        return f"list of {_kind(value['items'])}" if "items" in value else "list"
    if value.get("type") == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"name to {_kind(value['additionalProperties'])}"
    return value.get("type", "any")
