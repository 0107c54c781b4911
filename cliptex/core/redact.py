"""Sanitise untrusted text for logs: redact secrets, escape control characters, prevent forged log lines."""

import logging
import os
import re
from collections.abc import Mapping

SECRET_NAMES = re.compile(r"(?i)(^|_)(TOKEN|API_?KEY|ACCESS_?KEY(_ID)?|SECRET(_\w+)?|PASSWORD|PASSWD|CREDENTIALS?)$")
"""Names of environment variables whose values are secrets: HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY."""
MIN_LENGTH = 6
"""Shorter values are not redacted, since they also occur in ordinary words."""
PASSWORD = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)[^\s/@'\"]+@")
"""User and password before the host of a URL."""
SIGNATURE = re.compile(
    r"(?i)([?&;#](?:[\w.%-]{0,40}(?:token|secret|signature|password|passwd|credential|api[_-]?key|access[_-]?key|hmac|jwt)"
    r"[\w.%-]{0,40}|sig|sign|key|key-pair-id|policy|auth|authorization|session(?:_?id)?|hdn(?:ts|ea|tl))=)[^\s&;#'\"]+"
)
"""A credential in the query string of a URL, as S3, GCS, Azure, CloudFront, Akamai and others sign them. The lengths
are limited, so that the time is linear in the text's."""
MASK = "***"
CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters except tab and line feed: they move the cursor, set colours or change the text direction."""


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replace secrets by ***: values of environment variables with secret names, users and passwords in URLs, and
    signatures and tokens in their query strings."""
    secrets = {value for name, value in environment.items() if SECRET_NAMES.search(name) and len(value) >= MIN_LENGTH}
    for name, value in environment.items():
        if name.lower().endswith("_proxy") and "@" in value:
            user, _, password = value.rpartition("@")[0].rpartition("://")[2].partition(":")
            secrets.update(part for part in (f"{user}:{password}", password) if len(part) >= MIN_LENGTH)
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """Replace users and passwords in URLs, and signatures and tokens in their query strings, by ***."""
    return SIGNATURE.sub(rf"\g<1>{MASK}", PASSWORD.sub(rf"\g<1>{MASK}@", text))


def escape_controls(text: str) -> str:
    """Escape control characters, so that a terminal only displays the text."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Formatter(logging.Formatter):
    """Log lines without secrets and control characters. Continuation lines are indented, so that untrusted text cannot
    imitate a log line."""

    def format(self, record: logging.LogRecord) -> str:
        return escape_controls(without_secrets(super().format(record))).replace("\n", "\n  ")
