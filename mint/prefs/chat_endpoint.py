"""A chat model behind an OpenAI-compatible address: one request at a time, within limits of bytes and time.

Requests may hold texts of patients, so they go to the given address alone: encrypted unless it is this machine, and
never along a redirect. Nothing that a server sends, and no key, becomes part of a message.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import os
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from socket import SHUT_RDWR, socket
from urllib.parse import SplitResult, unquote, urlsplit

from mint.errors import InputError
from mint.files import write_aside

ATTEMPTS, LONGEST_WAIT = 5, 60.0  # of requests that fail; seconds between them
LONGEST_REPLY = 2**20  # bytes
LONGEST_TIME = 120.0  # seconds from the start of a request to the end of its reply
LONGEST_CONNECT = 20.0  # seconds
WORTH_REPEATING = (408, 409, 425, 429)  # of the statuses below 500


def add_chat_options(parser, flag: str) -> None:
    """The flags of a :class:`ChatEndpoint`. flag: the one that they belong to."""
    parser.add_argument("--url", help=f"of {flag}: an OpenAI-compatible address, as https://api.openai.com/v1")
    parser.add_argument("--key-name", default="OPENAI_API_KEY", help=f"of {flag}: the variable that holds the key")
    parser.add_argument("--per-minute", type=float, default=60, help=f"of {flag}: requests a minute (default 60)")


class _Failure(Exception):
    """Why a request has no reply. final: repeating it is of no use. wait: seconds that the server asks for."""

    def __init__(self, why: str, final: bool = False, wait: float = 0.0):
        super().__init__(why)
        self.final, self.wait = final, wait


class ChatEndpoint:
    """``endpoint(messages, ...)`` -> replies of a chat model behind an OpenAI-compatible address.

    Failed requests are repeated with growing delays. Replies are kept on disk, so nothing is requested twice; requests
    are written nowhere else.
    """

    def __init__(
        self, url: str, model: str, cache: str | Path, per_minute: float = 60, key_name: str = "OPENAI_API_KEY"
    ):
        """key_name: the environment variable that holds the key.

        Raises InputError for an address that cannot be used, if the key is needed and not set, and for a rate that is
        not positive.
        """
        if not 0 < per_minute < float("inf"):
            raise InputError(f"--per-minute must be above 0, not {per_minute:g}")
        self._address, local = check_address(url)
        self._key = os.environ.get(key_name, "").strip()
        if not self._key and not local:
            raise InputError(f"{url} needs a key: set {key_name}")
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise InputError(f"{key_name} holds no key: a key has no spaces, line breaks or other special characters")
        self.model, self.cache, self._gap = model, Path(cache), 60 / per_minute
        self._name, self._next = f"{url} {model}", 0.0

    def __call__(self, requests: Sequence[list[dict]]) -> Iterator[str]:
        for messages in requests:
            text = json.dumps([self._name, messages], ensure_ascii=False, sort_keys=True)
            place = self.cache / f"{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()}.json"
            if (reply := _kept(place)) is None:
                reply = self._ask(messages)
                write_aside(place, json.dumps({"reply": reply}, ensure_ascii=False))
            yield reply

    def _ask(self, messages: list[dict]) -> str:
        """The reply. Raises InputError after a failure that is final, or the last of ``ATTEMPTS``."""
        content = {"model": self.model, "messages": messages, "temperature": 0.0, "max_tokens": 512}
        body = json.dumps(content).encode()
        for attempt in range(1, ATTEMPTS + 1):
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + self._gap
            try:
                return read_reply(_post(self._address, self._key, body))
            except _Failure as failure:
                if failure.final or attempt == ATTEMPTS:
                    tried = f", {attempt} attempts" if attempt > 1 else ""
                    raise InputError(
                        f"the chat model {self._name} does not answer ({failure}{tried}); the replies before this one "
                        f"are kept in {self.cache}, and not requested again"
                    ) from None
                time.sleep(min(LONGEST_WAIT, max(self._gap * 2 ** (attempt - 1), failure.wait)))
        raise AssertionError("the last attempt returns or raises")


def check_address(url: str) -> tuple[SplitResult, bool]:
    """(the parts of an address, whether it is this machine). The address itself may be shown in messages afterwards.

    Raises InputError, without quoting passwords, for one that is not http or https, holds a user, password, query or
    fragment, or is plain http to another machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:  # UnicodeError is one
        raise InputError("--url is not a valid address; it looks like https://api.openai.com/v1") from None
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise InputError("--url must hold no user, password, query or fragment: the key belongs into --key-name")
    if parts.scheme not in ("http", "https") or not host or not (url.isascii() and url.isprintable()) or " " in url:
        raise InputError("--url is not a valid address; it looks like https://api.openai.com/v1")
    local = is_this_machine(host)
    if parts.scheme == "http" and not local:
        raise InputError(f"--url {url} is not encrypted: use https, which only localhost can do without")
    return parts, local


def is_this_machine(host: str) -> bool:
    """Whether a host is ``localhost`` or a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_reply(content: bytes) -> str:
    """The text of a chat completion, "" where it has none. Raises _Failure for another form."""
    try:
        reply = json.loads(content)["choices"][0]["message"]["content"]
        if reply is not None and not isinstance(reply, str):
            raise TypeError
        (reply or "").encode()  # no lone surrogates, which no file can hold
    except (ValueError, RecursionError):
        raise _Failure("its reply is not JSON in UTF-8") from None
    except (KeyError, IndexError, TypeError):
        raise _Failure("its reply is no chat completion") from None
    return reply or ""


def _kept(place: Path) -> str | None:
    """The reply in a file of the cache, None if there is none that can be read."""
    try:
        reply = json.loads(place.read_text(encoding="utf-8"))["reply"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None
    return reply if isinstance(reply, str) else None


class _Connection(http.client.HTTPConnection):
    """To an address; over https by the proxy that the environment names, if any, which sees no content.

    TLS is begun here and not by HTTPSConnection, whose socket another thread cannot reach during the handshake.
    """

    def __init__(self, address: SplitResult):
        self._server, self._context = str(address.hostname), None
        self._handle: socket | None = None  # a duplicate of the socket
        secure = address.scheme == "https"
        host, port, proxy = self._server, address.port or (443 if secure else 80), urlsplit("")
        if secure:
            self._context, self.default_port = ssl.create_default_context(), 443
            if not is_this_machine(host) and not urllib.request.proxy_bypass(host):
                given = urllib.request.getproxies().get("https", "")
                proxy = urlsplit(given if "://" in given else f"//{given}")
        super().__init__(proxy.hostname or host, proxy.port or 80 if proxy.hostname else port, timeout=LONGEST_CONNECT)
        if proxy.hostname:
            self.set_tunnel(host, port, _proxy_headers(proxy))

    def connect(self) -> None:
        super().connect()
        self._handle = self.sock.dup()
        if self._context:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self._server)
        self.sock.settimeout(LONGEST_TIME)

    def stop(self) -> None:
        """Ends what another thread does with the connection."""
        handle = self._handle or self.sock
        if handle is not None:
            with suppress(OSError):  # it is closed
                handle.shutdown(SHUT_RDWR)

    def release(self) -> None:
        """Ends the connection. (``close`` is called before the body is read, where the server will close.)"""
        self.stop()
        self.close()
        if self._handle is not None:
            self._handle.close()


def _post(address: SplitResult, key: str, body: bytes) -> bytes:
    """The body of the reply with status 200. Raises _Failure for all else."""
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    end = time.monotonic() + LONGEST_TIME
    connection = _Connection(address)
    timer = threading.Timer(LONGEST_TIME, connection.stop)
    timer.daemon = True
    timer.start()
    try:
        connection.connect()
        if time.monotonic() > end:
            raise TimeoutError
        connection.request("POST", f"{address.path.rstrip('/')}/chat/completions", body, headers)
        response = connection.getresponse()
        _check_status(response)
        content = response.read(LONGEST_REPLY + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= end
        raise _Failure(f"no reply within {LONGEST_TIME:g} s" if late else type(error).__name__) from None
    finally:
        timer.cancel()
        connection.release()
    if len(content) > LONGEST_REPLY:
        raise _Failure(f"its reply is longer than {LONGEST_REPLY:,} bytes", final=True)
    if time.monotonic() >= end:
        raise _Failure(f"no reply within {LONGEST_TIME:g} s")
    if response.length:  # bytes that were announced and did not arrive
        raise _Failure("its reply is cut off")
    return content


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {b64encode(user.encode()).decode()}"}


def _check_status(response: http.client.HTTPResponse) -> None:
    status = response.status
    if status == 200:
        return
    if 300 <= status < 400:
        raise _Failure(f"{status}, a redirect, which is not followed", final=True)
    wait = response.getheader("Retry-After", "")
    final = status < 500 and status not in WORTH_REPEATING
    raise _Failure(str(status), final, float(wait) if wait.isdecimal() and len(wait) < 6 else 0.0)
