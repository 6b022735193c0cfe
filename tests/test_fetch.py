"""Downloads and webhooks against real servers; the guard against names that mean our own network."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpcore
import pytest

from wan_server.errors import WanboxError
from wan_server.fetch import encode_json, fetch, guard_url, post_json
from wan_server.pinned import FetchFailed, FetchRefused, Network, is_public, resolve_host

Answer = Callable[[BaseHTTPRequestHandler], None]
PUBLIC = "93.184.215.14"
LIMITS = {"max_bytes": 1000, "timeout_s": 5.0}


@contextmanager
def serve(routes: dict[str, Answer], tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on 127.0.0.1 that answers each path with a function; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            routes[self.path](self)

        def do_POST(self) -> None:
            routes[self.path](self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that hang up are part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answer(body: bytes = b"data", status: int = 200, **headers: str) -> Answer:
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return send


def redirect(location: str, status: int = 302) -> Answer:
    return answer(b"", status, Location=location)


class LocalBackend(httpcore.SyncBackend):
    """Connects to 127.0.0.1 whatever address is asked for, and remembers the addresses."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.asked.append(host)
        return super().connect_tcp("127.0.0.1", port, timeout, local_address, socket_options)


def fake_network(hosts: dict[str, list[str]], tls: ssl.SSLContext | None = None) -> tuple[Network, LocalBackend]:
    backend = LocalBackend()
    return Network(lambda host, port: hosts[host], backend, tls), backend


def test_a_file_is_downloaded(tmp_path):
    seen = {}

    def send(handler: BaseHTTPRequestHandler) -> None:
        seen.update(handler.headers)
        answer(b"x" * 1000, Content_Type="Image/PNG; charset=x")(handler)

    with serve({"/a%20b.png?q=1": send}) as port:
        url = f"http://127.0.0.1:{port}/a%20b.png?q=1"
        got = fetch(f"{url}#part", tmp_path / "out", allow_private=True, **LIMITS)
    assert (tmp_path / "out").read_bytes() == b"x" * 1000
    assert (got.content_type, got.size) == ("image/png", 1000)
    assert got.final_url.startswith(url)
    assert seen["Host"] == f"127.0.0.1:{port}"
    assert not {"Cookie", "Authorization"} & set(seen)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_an_answer_without_a_length_is_read_to_its_end(tmp_path):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"abc")

    with serve({"/": send}) as port:
        got = fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", allow_private=True, **LIMITS)
    assert (got.size, got.content_type) == (3, "application/octet-stream")


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost:8000/", "http://[::1]/", "http://2130706433/", "http://0.0.0.0:9000/"],
)
def test_local_addresses_are_refused_however_they_are_written(tmp_path, url):
    with pytest.raises(FetchRefused, match="private or local"):
        fetch(url, tmp_path / "out", **LIMITS)
    with pytest.raises(FetchRefused, match="private or local"):
        guard_url(url)
    guard_url(url, allow_private=True)


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.9.9.9", "169.254.169.254", "100.64.0.1", "100.100.100.200",
        "0.0.0.0", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:10.0.0.1", "::ffff:127.0.0.1", "::127.0.0.1", "2002:a00:1::", "2002:7f00:1::1", "2001:0:1::1",
        "64:ff9b::10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_addresses_that_are_public(address):
    assert is_public(address)


def test_the_connection_goes_to_the_checked_address(tmp_path):
    network, backend = fake_network({"media.test": [PUBLIC]})
    with serve({"/": answer()}) as port:
        fetch(f"http://media.test:{port}/", tmp_path / "out", network=network, **LIMITS)
    assert backend.asked == [PUBLIC]


def test_a_name_is_resolved_once_per_connection(tmp_path):
    """A resolver that answers with a private address the second time (DNS rebinding) gains nothing."""
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    backend = LocalBackend()
    with serve({"/": answer()}) as port:
        network = Network(lambda host, port: next(answers), backend)
        fetch(f"http://media.test:{port}/", tmp_path / "out", network=network, **LIMITS)
        with pytest.raises(FetchRefused, match="private or local"):
            fetch(f"http://media.test:{port}/", tmp_path / "out", network=network, **LIMITS)
    assert backend.asked == [PUBLIC]


def test_one_private_address_among_public_ones_is_enough_to_refuse():
    network, _ = fake_network({"media.test": [PUBLIC, "10.0.0.1"]})
    with pytest.raises(FetchRefused, match=r"media\.test is at a private"):
        guard_url("https://media.test/a", network=network)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(tmp_path, status):
    with serve({"/a": redirect("/b?x=1", status), "/b?x=1": answer(b"there")}) as port:
        got = fetch(f"http://127.0.0.1:{port}/a", tmp_path / "out", allow_private=True, **LIMITS)
    assert (tmp_path / "out").read_bytes() == b"there"
    assert got.final_url == f"http://127.0.0.1:{port}/b?x=1"


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://inner.test:{port}/secret", "inner.test is at a private or local address"),
        ("http://169.254.169.254/latest/meta-data", "private or local"),
        ("//inner.test:{port}/secret", "private or local"),
        ("file:///etc/passwd", "only http and https"),
        ("http://me:pw@media.test:{port}/secret", "user name or password"),
        ("http://media.test:25/", "port 25"),
        ("http://media.test:port/", "cannot be read"),
    ],
)
def test_a_redirect_to_a_forbidden_place_is_refused(tmp_path, location, reason):
    hosts = {"media.test": [PUBLIC], "inner.test": ["10.1.2.3"], "169.254.169.254": ["169.254.169.254"]}
    network, backend = fake_network(hosts)
    reached = []
    routes: dict[str, Answer] = {"/secret": lambda handler: reached.append(1)}
    with serve(routes) as port:
        routes["/"] = redirect(location.format(port=port))
        with pytest.raises(FetchRefused, match=reason):
            fetch(f"http://media.test:{port}/", tmp_path / "out", network=network, **LIMITS)
    assert backend.asked == [PUBLIC]
    assert not reached
    assert list(tmp_path.iterdir()) == []


def test_endless_redirects_end(tmp_path):
    with serve({"/": redirect("/")}) as port, pytest.raises(FetchRefused, match="more than 5 redirects"):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", allow_private=True, **LIMITS)


def test_a_redirect_without_a_place_fails(tmp_path):
    with serve({"/": answer(b"", 302)}) as port, pytest.raises(FetchFailed, match="302 without"):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", allow_private=True, **LIMITS)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/a", "only http"),
        ("file:///etc/passwd", "only http"),
        ("gopher://example.com/", "only http"),
        ("http:///nothing", "only http"),
        ("not a url", "only http"),
        ("http://me:pw@example.com/", "user name or password"),
        ("http://me@example.com/", "user name or password"),
        ("http://example.com:22/", "port 22"),
        ("http://example.com:99999/", "cannot be read|not known"),
        ("http://exa mple.com\r\nX: y/", "cannot be read"),
    ],
)
def test_urls_that_are_refused_before_any_look_up(tmp_path, url, reason):
    def no_look_up(host: str, port: int) -> list[str]:
        raise FetchFailed(f"{host} is not known")

    with pytest.raises(FetchRefused, match=reason):
        fetch(url, tmp_path / "out", network=Network(no_look_up), **LIMITS)


@pytest.mark.parametrize("declared", [True, False])
def test_too_many_bytes_are_refused_and_leave_nothing(tmp_path, declared):
    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        if declared:
            handler.send_header("Content-Length", "1001")
        handler.end_headers()
        handler.wfile.write(b"x" * 1001)

    with serve({"/": send}) as port, pytest.raises(FetchRefused, match="more than 1000 bytes"):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", allow_private=True, **LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_an_endless_body_stops_at_the_limit(tmp_path):
    sent = [0]

    def send(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while sent[0] < 50_000_000:
            sent[0] += handler.wfile.write(b"x" * 10_000)

    with serve({"/": send}) as port, pytest.raises(FetchRefused, match="more than"):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", allow_private=True, **LIMITS)
    assert sent[0] < 50_000_000


@pytest.mark.parametrize("part", ["headers", "body"])
def test_a_server_that_drips_is_left_at_the_deadline(tmp_path, part):
    def send(handler: BaseHTTPRequestHandler) -> None:
        if part == "body":
            handler.send_response(200)
            handler.end_headers()
        else:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        for _ in range(250):
            handler.wfile.write(b"x")
            time.sleep(0.02)

    with serve({"/": send}) as port:
        start = time.monotonic()
        with pytest.raises(FetchFailed, match="too long"):
            fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", max_bytes=1000, timeout_s=0.2, allow_private=True)
        assert time.monotonic() - start < 3
    assert list(tmp_path.iterdir()) == []


def test_a_body_that_ends_early_is_no_file(tmp_path):
    with (
        serve({"/": answer(b"half", Content_Length="100")}) as port,
        pytest.raises(FetchFailed, match="broken or incomplete"),
    ):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", allow_private=True, **LIMITS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("routes", "reason"),
    [
        ({"/": answer(b"", 404)}, "answered 404"),
        ({"/": answer(b"", 500)}, "answered 500"),
        ({"/": answer(Content_Encoding="gzip")}, "compressed"),
        ({"/": lambda handler: handler.wfile.write(b"SSH-2.0-hello\r\n")}, "broken or incomplete"),
    ],
)
def test_other_answers_are_no_file(tmp_path, routes, reason):
    with serve(routes) as port, pytest.raises(FetchRefused, match=reason):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "out", allow_private=True, **LIMITS)
    assert list(tmp_path.iterdir()) == []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nobody_there_fails_without_telling_addresses(tmp_path):
    with pytest.raises(FetchFailed, match="no connection to the server") as caught:
        fetch(f"http://localhost:{free_port()}/", tmp_path / "out", allow_private=True, **LIMITS)
    assert "127.0.0.1" not in str(caught.value)
    assert isinstance(caught.value, WanboxError)
    assert caught.value.status == 422


def test_the_next_address_is_tried():
    class FirstIsDead(LocalBackend):
        def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
            if host == "8.8.8.8":
                self.asked.append(host)
                raise httpcore.ConnectError("dead")
            return super().connect_tcp(host, port, timeout, local_address, socket_options)

    backend = FirstIsDead()
    network = Network(lambda host, port: ["8.8.8.8", PUBLIC], backend)
    with serve({"/": answer(b"", 204)}) as port:
        assert post_json(f"http://hook.test:{port}/", {}, headers={}, timeout_s=5, network=network) == 204
    assert backend.asked == ["8.8.8.8", PUBLIC]


def test_unknown_hosts_fail():
    with pytest.raises(FetchFailed, match="not known"):
        resolve_host("no-such-host.invalid", 80)
    with pytest.raises(FetchFailed, match="not known"):
        guard_url(f"http://{'a' * 70}.example/")


def test_post_json_sends_bytes_that_can_be_signed():
    seen: dict[str, object] = {}

    def receive(handler: BaseHTTPRequestHandler) -> None:
        seen["body"] = handler.rfile.read(int(handler.headers["Content-Length"]))
        seen["headers"] = dict(handler.headers)
        answer(b"thanks", 202)(handler)

    payload = {"id": "x", "text": "é", "n": [1, None]}
    with serve({"/hook": receive}) as port:
        url = f"http://127.0.0.1:{port}/hook"
        status = post_json(url, payload, headers={"X-Signature": "abc"}, timeout_s=5, allow_private=True)
    assert status == 202
    assert seen["body"] == encode_json(payload)
    assert json.loads(encode_json(payload)) == payload
    headers = seen["headers"]
    assert isinstance(headers, dict)
    assert (headers["X-Signature"], headers["Content-Type"]) == ("abc", "application/json")


def test_post_json_does_not_follow_redirects_and_is_guarded():
    routes = {"/hook": redirect("/other"), "/other": answer()}
    with serve(routes) as port:
        url = f"http://127.0.0.1:{port}/hook"
        assert post_json(url, {}, headers={}, timeout_s=5, allow_private=True) == 302
        with pytest.raises(FetchRefused, match="private or local"):
            post_json(url, {}, headers={}, timeout_s=5)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A self-signed certificate for media.test and its key."""
    tool = shutil.which("openssl")
    if tool is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", "/CN=media.test", "-addext", "subjectAltName=DNS:media.test"]
    new = [tool, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run([*new, *subject, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def test_tls_verifies_the_name_of_a_pinned_address(tmp_path, certificate):
    cert, key = certificate
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    names: list[str] = []
    server.sni_callback = lambda sock, name, context: names.append(name)
    trusted = ssl.create_default_context(cafile=str(cert))
    hosts = {"media.test": [PUBLIC], "other.test": [PUBLIC]}
    network, backend = fake_network(hosts, trusted)
    with serve({"/": answer(b"safe")}, tls=server) as port:
        fetch(f"https://media.test:{port}/", tmp_path / "out", network=network, **LIMITS)
        assert (names, backend.asked) == (["media.test"], [PUBLIC])
        with pytest.raises(FetchFailed, match="no secure connection"):
            fetch(f"https://other.test:{port}/", tmp_path / "x", network=network, **LIMITS)
    assert (tmp_path / "out").read_bytes() == b"safe"
    assert not (tmp_path / "x").exists()


def test_a_silent_server_does_not_keep_anybody_from_changing_his_mind(tmp_path: Path):
    class Cancelled(BaseException):
        pass

    beats: list[float] = []

    def beat() -> None:
        beats.append(time.monotonic())
        if len(beats) > 4:
            raise Cancelled

    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.png"
        began = time.monotonic()
        with pytest.raises(Cancelled):
            fetch(url, tmp_path / "a.png", max_bytes=100, timeout_s=60, allow_private=True, beat=beat)
    assert time.monotonic() - began < 10
    assert list(tmp_path.iterdir()) == []
