"""Secrets are taken out of everything that leaves the program."""

from __future__ import annotations

import os
import re

REDACTED = "[redacted]"

_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN")
_SECRET_LENGTH_MIN = 4  # a shorter value would black out half of every line
# Source: AWS Signature Version 4, authentication by query parameters and by the Authorization header (2026-11).
_SIGNED = re.compile(
    r"(?i)\b(X-Amz-(?:Signature|Security-Token|Credential)=|AWS4-HMAC-SHA256 Credential=|Signature=)[^&\s\"',]+"
)
_URL_LOGIN = re.compile(r"(?<=://)[^/\s@\"']+@")


def redact(text: str) -> str:
    """Return a text without the secrets of the environment, request signatures and logins in URLs."""
    for name in _VARIABLES:
        secret = os.environ.get(name, "")
        if len(secret) >= _SECRET_LENGTH_MIN and secret in text:
            text = text.replace(secret, REDACTED)
    if "=" in text:
        text = _SIGNED.sub(rf"\g<1>{REDACTED}", text)
    if "@" in text:
        text = _URL_LOGIN.sub(f"{REDACTED}@", text)
    return text
