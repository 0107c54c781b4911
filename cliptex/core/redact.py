"""Text of others made harmless before it is shown: no secrets, no control characters, no forged lines of a log."""

import logging
import os
import re
from collections.abc import Mapping

SECRET_NAMES = re.compile(r"(?i)(^|_)(TOKEN|API_?KEY|ACCESS_?KEY(_ID)?|SECRET(_\w+)?|PASSWORD|PASSWD|CREDENTIALS?)$")
"""Names of environment variables whose values are secrets: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY."""
SHORTEST = 6
"""Shorter values are no secrets, and would blacken words."""
PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@'\"]+@")
"""What stands before the host of an address: user and password."""
SIGNATURE = re.compile(
    r"(?i)([?&;](?:[\w.-]*(?:token|secret|signature|password|passwd|credential|api_?key|access_?key)[\w.-]*|sig|key|auth)=)"
    r"[^\s&;#'\"]+"
)
"""A value in an address' query that lets whoever has it in."""
HIDDEN = "***"
CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""All but tab and line feed: what moves a cursor, colours a terminal, or turns the direction of writing."""


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with *** for the values of environment variables that are secrets, for users and passwords in addresses,
    and for signatures and tokens in their queries."""
    secrets = {value for name, value in environment.items() if SECRET_NAMES.search(name) and len(value) >= SHORTEST}
    for name, value in environment.items():
        if name.lower().endswith("_proxy") and "@" in value:
            user, _, password = value.rpartition("@")[0].rpartition("://")[2].partition(":")
            secrets.update(part for part in (f"{user}:{password}", password) if len(part) >= SHORTEST)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return SIGNATURE.sub(rf"\g<1>{HIDDEN}", PASSWORD.sub(rf"\g<1>{HIDDEN}@", text))


def harmless(text: str) -> str:
    """`text` with control characters as their escapes; a terminal shows it and does nothing else."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Formatter(logging.Formatter):
    """Lines of a log without secrets and control characters. Further lines of a message are indented, so that no text
    of others can pass for a line of the log."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(without_secrets(super().format(record))).replace("\n", "\n  ")
