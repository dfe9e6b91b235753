"""The client of chat models against a server on this machine that closes, drips, redirects and sends nonsense."""

import json
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import evaluate
import generate_prefs
from mint.errors import InputError
from mint.prefs import chat_endpoint
from mint.prefs.chat_endpoint import ChatEndpoint, check_address

ASKED = [{"role": "user", "content": "Is there an effusion?"}]
SECRET = "sk-a-key-that-is-secret"


def completion(content="yes"):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


class Server(BaseHTTPRequestHandler):
    """Answers as ``behaviours`` say, one after the other; then with a completion. requests: the paths asked for."""

    behaviours, requests = [], []

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).requests.append(self.path)
        behaviour = self.behaviours.pop(0) if self.behaviours else completion()
        with suppress(OSError):  # the client may leave
            behaviour(self) if callable(behaviour) else self.send(behaviour)

    do_GET = do_POST

    def send(self, body, status=200, length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setattr(Server, "behaviours", [])
    monkeypatch.setattr(Server, "requests", [])
    monkeypatch.setenv("OUR_KEY", SECRET)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def endpoint(address, folder):
    return ChatEndpoint(address, "some-model", folder / "replies", 1e9, "OUR_KEY")


def ask(address, folder):
    return list(endpoint(address, folder)([ASKED]))[0]


def close(server):
    server.close_connection = True
    server.connection.shutdown(socket.SHUT_RDWR)


def cut(server):
    server.send(completion(), length=1000)
    close(server)


def cut_chunk(server):
    server.send_response(200)
    server.send_header("Transfer-Encoding", "chunked")
    server.end_headers()
    server.wfile.write(b"ff\r\n{")
    close(server)


def drip(server):
    server.send_response(200)
    server.end_headers()
    for _ in range(200):
        server.wfile.write(b" ")
        time.sleep(0.02)


def drip_headers(server):
    for _ in range(200):
        server.wfile.write(b"H")
        time.sleep(0.02)


def endless(server):
    server.send_response(200)
    server.end_headers()
    while True:
        server.wfile.write(b" " * 65536)


def redirect(server):
    server.send(b"", 307, Location="/elsewhere")


def status(number, **headers):
    return lambda server: server.send(b"{}", number, **headers)


@pytest.mark.parametrize("behaviour", [close, cut, cut_chunk, status(500), status(429), b"not JSON", completion([])])
def test_a_failure_is_tried_again(behaviour, address, tmp_path):
    Server.behaviours += [behaviour, behaviour]
    assert ask(address, tmp_path) == "yes" and len(Server.requests) == 3


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (close, "RemoteDisconnected, 5 attempts"),
        (cut, "its reply is cut off, 5 attempts"),
        (b"\xff", "its reply is not JSON in UTF-8, 5 attempts"),
        (b"[" * 100_000, "its reply is not JSON in UTF-8, 5 attempts"),
        (b"[]", "its reply is no chat completion, 5 attempts"),
        (b'{"choices": []}', "its reply is no chat completion, 5 attempts"),
        (b'{"choices": {"0": 1}}', "its reply is no chat completion, 5 attempts"),
        (completion(["yes"]), "its reply is no chat completion, 5 attempts"),
        (completion("\ud800"), "its reply is not JSON in UTF-8, 5 attempts"),
        (status(404), "404"),
        (redirect, "307, a redirect, which is not followed"),
        (endless, "its reply is longer than 1,048,576 bytes"),
    ],
)
def test_what_is_no_reply(behaviour, why, address, tmp_path, capfd):
    Server.behaviours += [behaviour] * 5
    with pytest.raises(InputError) as raised:
        ask(address, tmp_path)
    assert f"the chat model {address} some-model does not answer ({why}); " in str(raised.value)
    assert str(tmp_path / "replies") in str(raised.value)
    assert len(Server.requests) == (5 if "attempts" in why else 1) and "/elsewhere" not in Server.requests
    assert not list(tmp_path.rglob("*.json"))
    assert SECRET not in str(raised.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize("behaviour", [drip, drip_headers])
def test_a_reply_has_a_limit_of_time_in_all(behaviour, address, tmp_path, monkeypatch):
    monkeypatch.setattr(chat_endpoint, "LONGEST_TIME", 0.3)
    monkeypatch.setattr(chat_endpoint, "ATTEMPTS", 2)
    Server.behaviours += [behaviour] * 2
    started = time.monotonic()
    with pytest.raises(InputError, match=r"no reply within 0\.3 s, 2 attempts"):
        ask(address, tmp_path)
    assert 0.6 <= time.monotonic() - started < 2


def test_a_handshake_is_within_the_limit_of_time(tmp_path, monkeypatch):
    """A server that begins TLS and sends a byte now and then, each in time."""
    monkeypatch.setattr(chat_endpoint, "LONGEST_TIME", 0.3)
    monkeypatch.setattr(chat_endpoint, "ATTEMPTS", 1)
    monkeypatch.setenv("OUR_KEY", SECRET)

    def serve(listener):
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 200:
                connection.send(bytes([byte]))
                time.sleep(0.02)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        started = time.monotonic()
        with pytest.raises(InputError, match=r"no reply within 0\.3 s"):
            ask(f"https://localhost:{listener.getsockname()[1]}", tmp_path)
        assert time.monotonic() - started < 2


def test_nobody_listens(tmp_path, monkeypatch):
    """Delays grow up to a limit."""
    waits = []
    monkeypatch.setattr(chat_endpoint.time, "sleep", waits.append)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    slow = ChatEndpoint(f"http://localhost:{port}", "m", tmp_path, per_minute=4)
    with pytest.raises(InputError, match="does not answer .ConnectionRefusedError, 5 attempts"):
        next(slow([ASKED]))
    assert [wait for wait in waits if wait in (15, 30, 60)] == [15, 30, 60, 60]


def test_the_wait_that_a_server_asks_for(address, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(chat_endpoint.time, "sleep", waits.append)
    Server.behaviours += [status(429, Retry_After="7"), status(503, Retry_After="9999")]
    assert ask(address, tmp_path) == "yes" and {7.0, 60.0} <= set(waits)


def test_a_damaged_reply_in_the_cache_is_asked_for_again(address, tmp_path):
    assert ask(address, tmp_path) == ask(address, tmp_path) == "yes" and len(Server.requests) == 1
    (kept,) = (tmp_path / "replies").iterdir()
    for content in (b"", b"\xff", b"[]", b'{"reply": 1}'):
        kept.write_bytes(content)
        assert ask(address, tmp_path) == "yes"
    assert len(Server.requests) == 5 and kept.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com/v1", "--url http://example.com/v1 is not encrypted"),
        ("http://localhost.example.com/v1", "is not encrypted"),
        ("http://127.0.0.1.example.com", "is not encrypted"),
        (f"https://user:{SECRET}@example.com/v1", "must hold no user, password"),
        (f"https://example.com/v1?key={SECRET}", "must hold no user, password"),
        ("https://example.com/v1#x", "must hold no user, password"),
        ("ftp://example.com", "not a valid address"),
        ("file:///etc/passwd", "not a valid address"),
        ("https://", "not a valid address"),
        ("https://[::1", "not a valid address"),
        ("https://example.com:x/", "not a valid address"),
        (f"https://{'a' * 70}.com", "not a valid address"),
        ("https://example.com/a b", "not a valid address"),
        ("https://example.com/\r\nX-Y: z", "not a valid address"),
    ],
)
def test_addresses_that_are_refused(url, message):
    with pytest.raises(InputError, match=message) as raised:
        check_address(url)
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1", "[::1]"])
def test_this_machine_needs_no_encryption_and_no_key(host, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert ChatEndpoint(f"http://{host}:9/v1", "m", tmp_path)
    with pytest.raises(InputError, match=r"https://example.com needs a key: set OPENAI_API_KEY"):
        ChatEndpoint("https://example.com", "m", tmp_path)


@pytest.mark.parametrize("key", [f"{SECRET}\r\nX: y", f"a {SECRET}", f"{SECRET}é"])
def test_a_key_that_is_none_is_not_quoted(key, tmp_path, monkeypatch):
    monkeypatch.setenv("OUR_KEY", key)
    with pytest.raises(InputError, match="OUR_KEY holds no key") as raised:
        ChatEndpoint("https://example.com", "m", tmp_path, key_name="OUR_KEY")
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_gets_its_own_password_alone(monkeypatch, tmp_path, scheme):
    """The request goes through a tunnel; the proxy sees the name of the host, and no key."""
    lines = []

    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            lines.append(connection.recv(65536))
            connection.send(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    monkeypatch.setattr(chat_endpoint, "ATTEMPTS", 1)
    monkeypatch.setenv("OUR_KEY", SECRET)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        monkeypatch.setenv("https_proxy", f"{scheme}user:proxy-password@127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(InputError, match=r"does not answer \(OSError\)") as raised:
            ask("https://example.invalid/v1", tmp_path)
    assert lines[0].startswith(b"CONNECT example.invalid:443 ")
    assert b"Proxy-Authorization: Basic dXNlcjpwcm94eS1wYXNzd29yZA==" in lines[0] and SECRET.encode() not in lines[0]
    assert "password" not in str(raised.value)


@pytest.mark.parametrize("url", [f"https://user:{SECRET}@example.com/v1", f"https://example.com/?k={SECRET}"])
def test_no_command_writes_or_prints_a_password(url, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    (tmp_path / "q.jsonl").write_text('{"id": "a", "images": ["x.png"], "question": "q", "answer": "yes", "truth": {}}')
    edit = ["edit", "--questions", "q.jsonl", "--model", ".", "--editor", "chat", "--editor-model", "m", "--out", "o"]
    judge = ["vqa", "--questions", "q.jsonl", "--predictions", "q.jsonl", "--judge", "m", "--out", "o"]
    assert generate_prefs.main([*edit, "--url", url]) == 2 and evaluate.main([*judge, "--url", url]) == 2
    with pytest.raises(SystemExit):
        evaluate.main([*judge, url.replace("?k=", "k:") if "@" in url else "--x"])
    assert SECRET not in "".join(capfd.readouterr())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET in path.read_text()]
