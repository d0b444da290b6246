"""Servers elsewhere, over HTTP: a token that never shows, waiting while they are down, answers of bounded size."""

from __future__ import annotations

import logging
import os
import random
import re
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from ..errors import EvaluationError, InvalidSpec, MissingExtra
from ..untrusted import LARGEST_RESULT, json_value

__all__ = ["Answer", "Connection", "Unavailable", "checked_url", "read_token"]

#: Statuses of a server that is busy, restarting or behind a gateway that is.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
#: Seconds between two tries: the first, the longest, and the longest that a server may ask for.
_FIRST, _LONGEST, _ASKED = 0.25, 60.0, 3600.0
#: Seconds for a connection, and between two pieces of an answer.
_CONNECT, _READ = 20.0, 120.0

_CORE = re.compile(
    "Connection refused|Connection reset|Name or service not known|[Tt]imed out|[Cc]onnection aborted|without response|"
    "No route to host|Temporary failure in name resolution"
)

T = TypeVar("T")


class Unavailable(Exception):
    """One request came to nothing for a reason that may pass; never leaves `Connection.persist`.

    Attributes:
        wait: seconds that the server asked for, or None.
    """

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Attributes:
        status: HTTP's.
        body: the bytes.
        headers: names in lower case.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The JSON of the body.

        Raises:
            Unavailable: it is none: a gateway's page, or an answer that was cut off.
        """
        try:
            return json_value(self.body.decode("utf-8"))
        except ValueError as error:
            raise Unavailable(f"an answer that is no JSON ({error})") from None

    def message(self) -> str:
        """What it says in words, shortened."""
        try:
            found = json_value(self.body.decode("utf-8", errors="replace"))
        except ValueError:
            found = None
        text = found.get("message") or found.get("error") if isinstance(found, dict) else None
        return " ".join(str(text or self.body[:200].decode("utf-8", errors="replace")).split())[:500]

    def time(self) -> float | None:
        """Seconds since 1970 by the server's clock, if it tells."""
        try:
            return parsedate_to_datetime(self.headers.get("date", "")).timestamp()
        except ValueError:
            return None


def checked_url(url: str, where: str, *, trusted: bool = False) -> str:
    """The address of a server without the slash at its end.

    Args:
        url: https, or http on this machine.
        where: begins the message.
        trusted: http is allowed elsewhere, too.

    Raises:
        InvalidSpec: anything else, or a user, a password or a query in it.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidSpec(f"{where}: the server's URL must be one, got {error}. Write https://host") from None
    # Whatever precedes an @ may be a password: it is not repeated.
    shown = repr(re.sub(r"//[^/]*@", "//***@", url.split("?")[0]))
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or parts.query or parts.fragment:
        raise InvalidSpec(
            f"{where}: the server must be a plain URL without user, password and query, got {shown}. "
            "Write https://host; tokens come from the environment"
        )
    if parts.scheme == "http" and not trusted and host not in ("localhost", "127.0.0.1", "::1"):
        raise InvalidSpec(
            f"{where}: a token is sent over https only, got {shown}. Write https://..., or use a tunnel to localhost"
        )
    return url.rstrip("/")


def read_token(environment: str, file: str, where: str) -> str:
    """A secret from a file that only its owner can read, or else from a variable of the environment.

    Args:
        environment: name of the variable.
        file: path; none if empty.
        where: begins the message.

    Raises:
        InvalidSpec: it is not there, or others may read it.
    """
    if file:
        path = Path(file).expanduser()
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "bytes that are no text"
            raise InvalidSpec(f"{where}: the token's file {path} must be readable, got {reason}. Correct it") from None
        if mode & 0o077:
            raise InvalidSpec(
                f"{where}: the token's file {path} must be readable by its owner only, got mode {mode:o}. "
                f"Run: chmod 600 {path}"
            )
        source = f"the file {path}"
    else:
        token = os.environ.get(environment, "").strip()
        source = f"the environment variable {environment}"
    if not token or not token.isascii() or not token.isprintable() or any(c.isspace() for c in token):
        got = "none" if not token else "characters that a token does not have"
        raise InvalidSpec(f"{where}: {source} must hold the access token, got {got}. Set it; it is never stored")
    return token


class _Masked(logging.Filter):
    """Takes tokens out of what urllib3 logs at its debug level: whole request lines."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"((?:^|[?&])access_token=)[^&\s\"]+", r"\1***", record.getMessage()), ()
        return True


_MASK = _Masked()


def _requests(where: str) -> ModuleType:
    try:
        import requests
    except ImportError as error:
        raise MissingExtra(
            f'{where}: requests must be installed, got {error}. Run: pip install "excursion[reana]"'
        ) from error
    # A logger has a filter once, however often it is added.
    logging.getLogger("urllib3.connectionpool").addFilter(_MASK)
    return requests


class Connection:
    """Requests to one server; a context manager, for one thread.

    Args:
        url: of the server, see `checked_url`.
        where: begins messages.
        token: the secret; empty if there is none.
        token_in: how it is sent: "header" (Authorization: Bearer) or "query" (access_token=...).
        patience: seconds for which a server that is down or busy is waited for.
    """

    def __init__(
        self, url: str, where: str, *, token: str = "", token_in: Literal["header", "query"] = "header", patience: float
    ) -> None:
        self.url, self._where, self._token, self._patience = url, where, token, patience
        self._query = {"access_token": token} if token and token_in == "query" else {}
        self._bearer = f"Bearer {token}" if token and token_in == "header" else ""
        self._library = _requests(where)
        self._session = self._library.Session()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def _authorised(self, request: Any) -> Any:
        # Given as `auth`, so that a ~/.netrc does not replace it.
        if self._bearer:
            request.headers["Authorization"] = self._bearer
        return request

    def masked(self, text: str) -> str:
        """The text without the token."""
        return text.replace(self._token, "***") if self._token else text

    def once(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        json: Any = None,
        data: Any = None,
        kind: str = "application/octet-stream",
        read: float = _READ,
        largest: int = LARGEST_RESULT,
        allowed: tuple[int, ...] = (),
    ) -> Answer:
        """One request.

        Args:
            method: of HTTP.
            path: after the server's address, quoted.
            query: besides the token.
            json: what is sent as JSON.
            data: bytes or a file that is sent as it is.
            kind: of `data`.
            read: seconds to wait for (each piece of) the answer.
            largest: bytes that the answer may have.
            allowed: statuses from 400 on that are answers, too.

        Raises:
            Unavailable: no answer, or "later".
            InvalidSpec: the server refuses the token or the request, which it would do at every point.
            EvaluationError: an answer that is too large, or another error.
        """
        said = f"{self._where}: {method} {self.url}{path}"
        headers = {} if data is None else {"Content-Type": kind}
        try:
            with self._session.request(
                method,
                self.url + path,
                params={**(query or {}), **self._query},
                json=json,
                data=data,
                headers=headers,
                auth=self._authorised,
                timeout=(_CONNECT, read),
                allow_redirects=False,
                stream=True,
            ) as response:
                pieces, size = [], 0
                for piece in response.iter_content(2**16):
                    pieces.append(piece)
                    if (size := size + len(piece)) > largest:
                        raise EvaluationError(
                            f"{said}: the answer must have at most {largest} bytes, got more. Write smaller results"
                        )
                found = {name.lower(): value for name, value in response.headers.items()}
                answer = Answer(response.status_code, b"".join(pieces), found)
        except (self._library.exceptions.InvalidURL, self._library.exceptions.InvalidSchema) as error:
            raise InvalidSpec(
                f"{said}: must be the URL of a server, got {self.masked(str(error))}. Correct it"
            ) from None
        except self._library.exceptions.SSLError as error:
            raise InvalidSpec(
                f"{said}: the server's certificate must be valid, got {self.masked(str(error))[:300]}. "
                "Set REQUESTS_CA_BUNDLE to the certificates of your site"
            ) from None
        except (self._library.exceptions.RequestException, OSError) as error:
            # No cause: it would show the URL with the token in every traceback.
            raise Unavailable(_reason(self.masked(str(error)), type(error).__name__)) from None
        if answer.status in allowed or answer.status < 300:
            return answer
        message = self.masked(answer.message())
        if answer.status in _PASSING:
            raise Unavailable(f"status {answer.status} ({message})", _asked(answer.headers.get("retry-after")))
        got = f"got status {answer.status}: {message}"
        if answer.status < 400:
            raise InvalidSpec(f"{said}: the server must answer itself, {got}. Give the URL that it redirects to")
        if answer.status in (401, 403):
            raise InvalidSpec(f"{said}: the server must allow this, {got}. Check the token and your quota")
        if answer.status == 400:
            raise InvalidSpec(f"{said}: the server must accept the request, {got}. Correct the settings")
        raise EvaluationError(f"{said}: the server must do this, {got}. Ask its administrators")

    def persist(self, work: Callable[[], T]) -> T:
        """Repeat something that may be repeated until the server is available, at most for the patience.

        Args:
            work: calls `once`; begins anew each time.

        Raises:
            EvaluationError: the patience is at its end.
        """
        began, wait = time.monotonic(), _FIRST
        while True:
            try:
                return work()
            except Unavailable as error:
                last, asked = str(error), error.wait
            pause = max(wait * random.uniform(0.5, 1.5), min(asked or 0.0, _ASKED))
            if time.monotonic() - began + pause > self._patience:
                raise EvaluationError(
                    f"{self._where}: {self.url} must be available, got {last} for {self._patience:g} s. "
                    "See whether it is down; what runs there goes on"
                )
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST)


def _reason(text: str, kind: str) -> str:
    """The core of what requests and urllib3 wrap several times."""
    inner = _CORE.search(text)
    return inner[0] if inner else f"{kind}: {text[:200]}"


def _asked(text: str | None) -> float | None:
    """Seconds of a Retry-After header, which may also be a date."""
    if text is None:
        return None
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
