"""Recognition of a conversation that was written as one text: JSON or Python text of messages, encoded once or more.

Trained on as it stands, such a text teaches brackets and quotes. Only its beginning and its keys count, so that a text
that was cut is recognised as well, and prose or code with brackets in it is not.
"""

import base64
import binascii
import re

_ROLE = r"""["'](?:role|from)["']\s*:\s*["'](?:system|developer|user|assistant|human|gpt|tool|function|bot|model)["']"""
_BEGINS = re.compile(
    r"""[\s\ufeff"']*+(?:array\()?[\s\[(]*+\{\s*+"""
    rf"""(?:["'](?:content|value|messages|conversations?|dialogue)["']\s*:|[^{{}}\[\]]*?{_ROLE})""",
    re.IGNORECASE,
)
_NAMES_A_ROLE = re.compile(_ROLE, re.IGNORECASE)
_HAS_A_TEXT = re.compile(r"""["'](?:content|value)["']\s*:""", re.IGNORECASE)
_BASE64 = re.compile(r"\s*[A-Za-z0-9+/_-]{24}[A-Za-z0-9+/_\s-]*(?:=\s*){0,2}")


def is_encoded(text: str) -> bool:
    r"""Return whether a text is a message, or a list of messages, that was written as JSON, Python or base64.

    >>> is_encoded("[{'role': 'user', 'content': 'Hi'}]"), is_encoded('{"from": "gpt", "value": "Hi"}')
    (True, True)
    >>> is_encoded('Messages look like {"role": "user", "content": "Hi"}.'), is_encoded('{"value": 3}')
    (False, False)
    """
    return _is_written(text) or _is_written(_from_base64(text))


def _is_written(text: str) -> bool:
    # Text in text has its quotes behind backslashes, as many as it was encoded times.
    plain = text.replace("\\", "")
    begins = _BEGINS.match(plain) is not None
    return begins and _NAMES_A_ROLE.search(plain) is not None and _HAS_A_TEXT.search(plain) is not None


def _from_base64(text: str) -> str:
    """Return the text that a text of base64 encodes, "" if it is no such text."""
    if not _BASE64.fullmatch(text):
        return ""
    try:
        return base64.b64decode("".join(text.split()).replace("-", "+").replace("_", "/"), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
