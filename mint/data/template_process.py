"""The process that renders chat templates under limits of time, memory and output; see ``template_worker``.

Limits inside the sandbox would have to know every expression that can grow: products, ``~`` in a loop, ``replace``,
``"%999999999d"``, nested lists written out. A process needs one limit of each kind, and they are the kernel's. They
hold in worker processes and in threads, which signals and alarms in this process would not.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from mint.errors import InputError

SECONDS = 2.0  # of processor time for a conversation; real templates need a thousandth of one
PATIENCE = 300.0  # seconds for a conversation, on a machine however busy
MEMORY = 1_000_000_000  # bytes of the process
LONGEST = 10_000_000  # characters of a rendered conversation
SOURCE = 1_000_000  # characters of a template
WORKER = Path(__file__).with_name("template_worker.py")


class RenderProcess:
    """One process for all templates of this one. A forked process starts its own; threads take turns."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._owner = 0
        self._compiled: set[str] = set()
        self._answers = False  # whether the process has replied to anything
        self._lock = threading.RLock()

    def ask(self, template: Template, request: dict) -> dict:
        """The reply to a request about a template, which the process compiles where it does not know it yet."""
        with self._lock:
            self._start()
            if template.key not in self._compiled:
                source = {"source": template.source, "date": template.date.isoformat()}
                if reply := self._exchange({"template": template.key, **source}):
                    return reply
                self._compiled.add(template.key)
            return self._exchange({"template": template.key, **request}) if request else {}

    def _start(self) -> None:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return
        limits = map(str, (SECONDS, PATIENCE, MEMORY, LONGEST))
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )
        self._owner, self._compiled, self._answers = os.getpid(), set(), False

    def _exchange(self, request: dict) -> dict:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        except BaseException:  # an interruption: the reply that follows belongs to no request
            self.close()
            raise
        if not line.endswith(b"\n"):
            with suppress(subprocess.TimeoutExpired):  # one that has stopped answering is ended by ``close``
                process.wait(1.0)
            status = process.returncode
            self.close()
            if status == 1 and not self._answers:  # an exception outside any template
                command = f"{sys.executable} {WORKER} {SECONDS} {PATIENCE} {MEMORY} {LONGEST}"
                raise InputError(f"the process that renders chat templates does not start; see {command}")
            return {"limit": f"it runs for more than {SECONDS:g} seconds, or needs too much memory"}
        self._answers = True
        return json.loads(line)

    def close(self) -> None:
        """Ends the process; the next request starts another."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.communicate()


PROCESS = RenderProcess()
atexit.register(PROCESS.close)
if hasattr(os, "register_at_fork"):  # a lock that another thread holds would stay locked in the child
    os.register_at_fork(after_in_child=lambda: setattr(PROCESS, "_lock", threading.RLock()))


class LimitExceeded(InputError):
    """A template that runs too long, or needs or writes too much."""


class Template:
    """A template's text, compiled and rendered by :class:`RenderProcess`. date: today, as the template sees it.

    Raises InputError with the reason if the text is not a valid template, LimitExceeded if it is too large to compile.
    """

    def __init__(self, source: str, date: datetime):
        if len(source) > SOURCE:
            raise LimitExceeded(f"it has more than {SOURCE:,} characters")
        self.source, self.date = source, date
        self.key = hashlib.sha256(f"{date} {source}".encode()).hexdigest()
        self._reply({})

    def render(self, **variables) -> str:
        """The text that the template makes of ``variables``, of values that JSON can hold.

        Raises InputError with the reason if the template refuses them, LimitExceeded if it exceeds a limit.
        """
        text = self._reply({"variables": variables})["text"]
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError("it writes half of a surrogate pair, which is not text") from None
        return text

    def _reply(self, request: dict) -> dict:
        reply = PROCESS.ask(self, request)
        if "limit" in reply:
            raise LimitExceeded(reply["limit"])
        if "error" in reply:
            raise InputError(reply["error"])
        return reply
