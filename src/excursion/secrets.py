"""Passwords and tokens, kept out of what is stored, printed and logged.

They are recognised by the form that they have in a text, and by value where a variable of this process's environment
holds them. A program that prints a secret in a form of its own cannot be helped: give it none that it does not need.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

__all__ = ["is_secret", "masked", "masked_data", "secrets_in", "without_password"]

_STARS = "***"
#: Shorter values of the environment are not looked for: they would be found everywhere.
_SHORTEST = 6
# One of the words of a name in capitals, or its end: PGPASSWORD, REANA_ACCESS_TOKEN, not TOKENIZERS_PARALLELISM, PWD.
_SECRET = re.compile(
    r"(?:\A|_)(?:[A-Z0-9]*(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|APIKEY)S?|PASS|JWT|COOKIE|BEARER|AUTHORIZATION"
    r"|CREDENTIALS?|(?:API|ACCESS|PRIVATE|SIGNING|ENCRYPTION|ACCOUNT)_KEY)(?=_|\Z)|_PWD\Z"
)
#: Names that end so say where a secret is, or something else about it.
_ABOUT = (
    "FILE", "FILES", "DIR", "PATH", "HOME", "ENV", "VARIABLE", "NAME", "TYPE", "LIFETIME", "EXPIRES", "LENGTH",
    "SERVER", "ENDPOINT", "ISSUER", "HELPER", "PROMPT", "COMMAND",
)  # fmt: skip
_VALUE = r"""(?!\{|\*\*\*)(?:'[^']*'|"[^"]*"|[^\s'"&,;{}]+)"""
# What is kept is group 1; the rest is the secret. Each takes a time that grows with the text, not with its square.
_FORMS = tuple(
    re.compile(pattern, re.IGNORECASE | re.DOTALL)
    for pattern in (
        # scheme://user:password@host, but not http://host:8080/me@there; nothing that is masked already
        r"""(://[^\s:/@"']{0,200}:)(?!\d{1,5}(?:[/?#\s"']|\Z))(?!\*\*\*@)[^\s"]{0,500}(?=@)""",
        # https://token@host
        r"""(\bhttps?://)(?!\*\*\*@)[^\s:/@"']{1,500}(?=@)""",
        # password=..., access_token=..., --api-key ..., also in the query of a URL
        r"((?:password|passwd|passphrase|token|secret|api[_-]?key|access[_-]?key|x-amz-signature)\s*=\s*)" + _VALUE,
        r"(--[\w-]{0,40}(?:password|passwd|passphrase|token|secret|api-?key|access-?key)\s+)(?!-)" + _VALUE,
        # "password": "...", and the same of Python
        r"""((?:password|passwd|passphrase|token|secret|api[_-]?key|access[_-]?key)["']\s*:\s*)(?!["']\*\*\*)"""
        r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""",
        # X-Auth-Token: ..., Password: ...
        r"((?:-(?:token|secret|key)|password|passphrase)\s*:\s+)" + _VALUE,
        r"""(\bauthorization["']?\s*[:=]\s*["']?(?:(?:bearer|basic|token|negotiate)\s+)?)"""
        r"""(?!\*\*\*|(?:bearer|basic|token|negotiate)\s)[^\s"',]+""",
        r"(\b(?:bearer|basic)\s+)[\w.~+/=-]{16,}",
        # Forms that are nothing else: GitHub, GitLab, JSON web tokens, private keys
        r"(\b)(?:gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)",
        r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).*?(?=-----END|\Z)",
    )
)


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Whether the name of a variable or a setting says that its value is a password or a token.

    >>> [is_secret(n) for n in ("REANA_ACCESS_TOKEN", "apiKey", "TOKEN_FILE", "PWD", "TOKENIZERS_PARALLELISM")]
    [True, True, False, False, False]
    """
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+", "_", name).upper().strip("_")
    return not words.endswith(tuple(f"_{about}" for about in _ABOUT)) and _SECRET.search(words) is not None


def masked(text: str) -> str:
    """The text with stars for passwords in URLs, tokens, and the values of secret variables of the environment.

    >>> masked("postgresql://me:pa55@host/db?x=1 and access_token=abc")
    'postgresql://me:***@host/db?x=1 and access_token=***'
    """
    if len(text) < _SHORTEST:
        return text  # room for no secret
    if (known := _known()) is not None:
        text = known.sub(_STARS, text)
    return _masked_forms(text)


def _masked_forms(text: str) -> str:
    for form in _FORMS:
        text = form.sub(rf"\g<1>{_STARS}", text)
    return text


def masked_data(value: Any) -> Any:
    """JSON-compatible data with `masked` texts; a text whose key is the name of a secret is masked as a whole."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {
            key: _STARS if isinstance(inner, str) and inner and is_secret(str(key)) else masked_data(inner)
            for key, inner in value.items()
        }
    return [masked_data(inner) for inner in value] if isinstance(value, list | tuple) else value


def secrets_in(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where plain data hold what looks like a secret: the keys and indices that lead there."""
    if isinstance(value, str):
        if _masked_forms(value) != value or (value and path and isinstance(path[-1], str) and is_secret(path[-1])):
            yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from secrets_in(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from secrets_in(inner, (*path, i))


def without_password(url: str) -> str:
    """The URL of a store as it can be shown and used again: libpq knows the password from PGPASSWORD or ~/.pgpass.

    >>> without_password("postgresql://me:pa55@host/db"), without_password("scan.db")
    ('postgresql://me@host/db', 'scan.db')
    """
    if "://" not in url:
        return url
    url = re.sub(r"(?<=[?&])(?:password|passfile)=[^&]*&?", "", _masked_forms(url)).rstrip("?&")
    return url.replace(f":{_STARS}@", "@", 1)


def _known() -> re.Pattern[str] | None:
    """What finds the values of secret variables, in the forms in which they are written."""
    values = {value for name in os.environ if is_secret(name) and len(value := os.environ[name]) >= _SHORTEST}
    return _any_of(frozenset(values)) if values else None


@lru_cache(maxsize=8)
def _any_of(values: frozenset[str]) -> re.Pattern[str]:
    forms = {form for v in values for form in (v, quote(v, safe=""), quote(v), repr(v)[1:-1], json.dumps(v)[1:-1])}
    return re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))))
