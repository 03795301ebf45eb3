"""TLS: what callers see, what changes while they call, and what they show themselves."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.hazmat.primitives.serialization import load_pem_private_key as load_key

from gateway.http.tls import certified, make
from gateway.settings import Tls
from tests.support import PATIENCE, Server, Site, cli, eventually, served
from tests.test_keeper import kept, shrunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

HOSTS = "localhost", "127.0.0.1", "::1"
TLS = "tls: {cert: tls.crt, key: tls.key}"
MUTUAL = "tls: {cert: tls.crt, key: tls.key, client_ca: ca.crt, client_certificates: %s}"
ECHO = "echo: {run: [cat], commands: {Go: {additional_parameters: true}}}"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other() -> trustme.CA:
    return trustme.CA()


def put(path: Path, data: bytes) -> None:
    """Write a file as operators' tools do: the new one takes the place of the old one at once."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    os.replace(new, path)


def install(site: Site, leaf: trustme.LeafCert) -> None:
    put(site.folder / "tls.key", leaf.private_key_pem.bytes())
    put(site.folder / "tls.crt", b"".join(one.bytes() for one in leaf.cert_chain_pems))


def trust(site: Site, authority: trustme.CA) -> None:
    put(site.folder / "ca.crt", authority.cert_pem.bytes())


def trusting(authority: trustme.CA, leaf: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """Return what a caller has who trusts an authority, and perhaps shows a certificate."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if leaf is not None:
        leaf.configure_cert(context)
    return context


@pytest.fixture
def secure(site: Site, authority: trustme.CA) -> Site:
    """A site whose gateway has a certificate."""
    install(site, authority.issue_cert(*HOSTS))
    site.configure(ECHO, gateway=TLS)
    return site


@contextlib.contextmanager
def connected(server: Server, context: ssl.SSLContext, **options: Any) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain,
        context.wrap_socket(plain, server_hostname="localhost", **options) as found,
    ):
        yield found


def shown(server: Server, context: ssl.SSLContext) -> int:
    """Return the serial number of what a new connection is shown."""
    with connected(server, context) as connection:
        facts = connection.getpeercert()
        assert facts is not None
        return int(facts["serialNumber"], 16)


def serial(site: Site) -> int:
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    return load_pem_x509_certificates((site.folder / "tls.crt").read_bytes())[0].serial_number


# --- calls


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
async def test_calls_are_encrypted(secure: Site, authority: trustme.CA, option: str) -> None:
    context = trusting(authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with served(secure, option, tls=context) as server:
        assert (await server.do("echo/Go", {"n": 1})).body["params"] == {"n": 1}
        with connected(server, context) as connection:
            assert connection.selected_alpn_protocol() == "http/1.1"
            assert connection.version() == "TLSv1.3"
        status = await server.status()
        assert status["tls"]["not_after"].endswith("+00:00")
        assert (status["tls"]["client_certificates"], status["tls"]["problem"], status["notices"]) == (None, None, [])
        assert server.events("listening", tls=True)


async def test_what_is_older_than_tls_1_2_is_refused(secure: Site, authority: trustme.CA) -> None:
    old = trusting(authority)
    old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    async with served(secure, tls=trusting(authority)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError)), connected(server, old):
            pass


async def test_the_certificates_between_are_sent_along(site: Site, authority: trustme.CA) -> None:
    install(site, authority.create_child_ca().issue_cert(*HOSTS))
    site.configure(ECHO, gateway=TLS)
    async with served(site, tls=trusting(authority)) as server:
        assert (await server.do("echo/Go")).status == 200


async def test_it_is_served_at_ipv6_too(secure: Site, authority: trustme.CA) -> None:
    async with served(secure, "--listen", "[::1]:0", tls=trusting(authority)) as server:
        [place] = server.events("listening", host="::1", tls=True)
        async with server.session.get(f"https://[::1]:{place['port']}/liveness") as answer:
            assert answer.status == 200


async def test_a_large_answer_reaches_a_slow_reader_although_the_gateway_ends(
    site: Site, authority: trustme.CA
) -> None:
    size = 20 << 20
    install(site, authority.issue_cert(*HOSTS))
    site.script("large.sh", f"printf '\"'; head -c {size} /dev/zero | tr '\\0' x; printf '\"'")
    site.configure("large: {run: [./large.sh], max_output: 30MiB, commands: {Go: {}}}", gateway=TLS)
    async with served(site, tls=trusting(authority)) as server:
        async with server.session.post(f"{server.url}/v1/do/large/Go", json={}) as response:
            server.signal(signal.SIGTERM)
            await eventually(lambda: server.events("drain_started"))
            got = 0
            async for piece in response.content.iter_chunked(1 << 16):
                got += len(piece)
        assert got > size
        assert await server.ended() == 0


async def test_an_answer_that_nobody_takes_ends_its_connection(site: Site, authority: trustme.CA) -> None:
    install(site, authority.issue_cert(*HOSTS))
    site.script("large.sh", f"printf '\"'; head -c {20 << 20} /dev/zero | tr '\\0' x; printf '\"'")
    site.configure(
        "large: {run: [./large.sh], max_output: 30MiB, commands: {Go: {}}}", gateway=f"{TLS}\nwrite_timeout: 500ms"
    )
    async with served(site, tls=trusting(authority)) as server:
        with connected(server, trusting(authority)) as connection:
            connection.sendall(b"GET /v1/do/large/Go HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: [one for one in server.events("connections_cut") if one["unread"] == 1])

            def rest() -> int:
                got = 0
                with contextlib.suppress(ssl.SSLError, ConnectionError):
                    while piece := len(connection.recv(1 << 16)):
                        got += piece
                return got

            assert await asyncio.to_thread(rest) < 20 << 20
        assert (await server.get("/liveness")).status == 200


# --- files that cannot be used


def encrypted(leaf: trustme.LeafCert) -> bytes:
    key = load_key(leaf.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize("option", ["--restart", "--no-restart"])
@pytest.mark.parametrize(
    ("file", "bad", "said"),
    [
        ("tls.crt", None, "gateway.tls.cert: {}: No such file or directory"),
        ("tls.crt", b"rubbish", "gateway.tls.cert: {}: it holds no certificate in PEM"),
        ("tls.key", None, "gateway.tls.key: {}: No such file or directory"),
        ("tls.key", b"rubbish", "gateway.tls.key: {}: it holds no private key in PEM"),
        ("tls.key", "encrypted", "gateway.tls.key: {}: it has a passphrase, which nobody can enter here: openssl pkey"),
        ("tls.key", "another", "gateway.tls.key: {}: it is not the key of the certificate in gateway.tls.cert"),
        ("ca.crt", None, "gateway.tls.client_ca: {}: No such file or directory"),
        ("ca.crt", b"rubbish", "gateway.tls.client_ca: {}: it holds no certificate in PEM"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(
    site: Site, authority: trustme.CA, file: str, bad: bytes | str | None, said: str, option: str
) -> None:
    leaf = authority.issue_cert(*HOSTS)
    install(site, leaf)
    trust(site, authority)
    site.configure(gateway=MUTUAL % "optional")
    path = site.folder / file
    path.unlink()
    if bad is not None:
        others = {"encrypted": encrypted(leaf), "another": authority.issue_cert(*HOSTS).private_key_pem.bytes()}
        path.write_bytes(others[bad] if isinstance(bad, str) else bad)
    for done in (cli(site, "serve", option, "--listen", "127.0.0.1:0"), cli(site, "check")):
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {said.format(path)}")
        assert done.stderr.count("\n") == 1


def test_files_that_others_can_change_are_told(secure: Site) -> None:
    (secure.folder / "tls.crt").chmod(0o666)
    done = cli(secure, "check")
    assert (done.returncode, f"{secure.folder}/tls.crt" in done.stdout) == (1, True)


async def test_a_connector_cannot_read_the_key(secure: Site, authority: trustme.CA) -> None:
    secure.python(
        "spy.py",
        f"import json\ntry:\n    print(json.dumps(open('{secure.folder}/tls.key').read()))\n"
        "except OSError as problem:\n    print(json.dumps(problem.strerror))\n",
    )
    secure.configure("spy: {run: [./spy.py], commands: {Go: {}}}", gateway=TLS)
    async with served(secure, tls=trusting(authority)) as server:
        assert "PRIVATE" not in (await server.do("spy/Go")).body
        install(secure, authority.issue_cert(*HOSTS))
        await eventually(lambda: server.events("tls_loaded"))

        async def is_hidden() -> bool:
            return "PRIVATE" not in (await server.do("spy/Go")).body

        await eventually(is_hidden)  # the registry looks at the files in its own time


# --- files that change


async def test_a_new_certificate_is_taken_under_load_and_no_call_fails(secure: Site, authority: trustme.CA) -> None:
    context = trusting(authority)
    async with served(secure, "--restart", tls=context) as server:
        before, statuses, over = serial(secure), [], asyncio.Event()

        async def call() -> None:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1, ssl=context)) as session:
                while not over.is_set():
                    async with session.post(f"{server.url}/v1/do/echo/Go", json={}) as answer:
                        await answer.read()
                        statuses.append(answer.status)

        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(call()) for _ in range(4)]
            await eventually(lambda: len(statuses) > 20)
            for _ in range(2):
                install(secure, authority.issue_cert(*HOSTS))
                new = serial(secure)
                await eventually(lambda new=new: asyncio.to_thread(lambda: shown(server, context) == new))
                done = len(statuses)
                await eventually(lambda done=done: len(statuses) > done + 20)
            over.set()
            assert not any(task.done() and task.exception() for task in callers)
        assert set(statuses) == {200}
        assert before != serial(secure)
        assert len(server.events("tls_loaded")) == 2


async def test_a_connection_of_former_times_ends_after_its_next_answer(secure: Site, authority: trustme.CA) -> None:
    context = trusting(authority)
    async with served(secure, tls=context) as server:
        assert (await server.get("/liveness")).headers.get("Connection") is None
        install(secure, authority.issue_cert(*HOSTS))
        await eventually(lambda: server.events("tls_loaded"))
        assert (await server.get("/liveness")).headers["Connection"] == "close"
        assert (await server.get("/liveness")).headers.get("Connection") is None


@pytest.mark.parametrize("how", ["watched", "sighup"])
async def test_a_bad_one_changes_nothing_and_is_told_until_it_is_mended(
    secure: Site, authority: trustme.CA, how: str
) -> None:
    context = trusting(authority)
    env = shrunk(secure, "gateway.http.tls", POLL=1000) if how == "sighup" else None

    def look(server: Server) -> None:
        if how == "sighup":
            server.signal(signal.SIGHUP)

    async with served(secure, env=env, tls=context) as server:
        before = serial(secure)
        good = (secure.folder / "tls.crt").read_bytes()
        put(secure.folder / "tls.crt", b"rubbish")
        look(server)
        [failed] = await eventually(lambda: server.events("tls_failed"))
        assert failed["reason"] == f"gateway.tls.cert: {secure.folder}/tls.crt: it holds no certificate in PEM"
        assert (await server.status())["tls"]["problem"] == failed["reason"]
        assert await asyncio.to_thread(shown, server, context) == before
        put(secure.folder / "tls.crt", good)
        look(server)

        async def is_well() -> bool:
            return (await server.status())["tls"]["problem"] is None

        await eventually(is_well)
        assert not server.events("tls_loaded")  # it is the one that there was
        install(secure, authority.issue_cert(*HOSTS))
        look(server)
        await eventually(lambda: server.events("tls_loaded"))
        assert await asyncio.to_thread(shown, server, context) == serial(secure) != before
        assert len(server.events("tls_failed")) <= 2  # between the key and the certificate it may look once more


async def test_one_that_has_ended_does_not_replace_one_that_has_not(secure: Site, authority: trustme.CA) -> None:
    context = trusting(authority)
    async with served(secure, tls=context) as server:
        before = serial(secure)
        install(secure, authority.issue_cert(*HOSTS, not_after=datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)))
        await eventually(
            lambda: [one for one in server.events("tls_failed") if "it ended at 2024-01-01" in one["reason"]]
        )
        assert await asyncio.to_thread(shown, server, context) == before


@pytest.mark.parametrize(("days", "said"), [(5, "ends soon"), (-5, "has ended"), (20, None)])
async def test_one_that_ends_soon_is_told(site: Site, authority: trustme.CA, days: int, said: str | None) -> None:
    now = datetime.datetime.now(datetime.UTC)
    ends = now + datetime.timedelta(days=days)
    install(site, authority.issue_cert(*HOSTS, not_before=now - datetime.timedelta(days=30), not_after=ends))
    site.configure(gateway=TLS)
    careless = trusting(authority)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    async with served(site, tls=careless) as server:
        status = await server.status()
        assert status["tls"]["not_after"] == ends.replace(microsecond=0).isoformat()
        scraped = (await server.get("/metrics")).raw.decode()
        [line] = [one for one in scraped.splitlines() if one.startswith("gateway_tls_not_after_seconds ")]
        assert float(line.split()[1]) == ends.replace(microsecond=0).timestamp()
        problems = {one["kind"]: one["severity"] for one in status["problems"]}
        assert problems.get("tls_ending") == {"ends soon": "warning", "has ended": "error", None: None}[said]
        if said is None:
            assert (status["notices"], server.events("tls_expiring")) == ([], [])
        else:
            assert status["notices"] == [f"the certificate {said}: {status['tls']['not_after']} (gateway.tls.cert)"]
            [event] = await eventually(lambda: server.events("tls_expiring", level="warning"))
            assert event["message"] == f"the certificate {said}"


# --- without TLS


@pytest.mark.parametrize(
    ("listen", "gateway", "warned"),
    [("127.0.0.1:0", "", False), ("0.0.0.0:0", "", True), ("0.0.0.0:0", "tls: false", False)],
)
async def test_without_it_other_machines_are_warned_about(site: Site, listen: str, gateway: str, warned: bool) -> None:
    site.configure(gateway=f"api_key: k3y\n{gateway}")
    async with served(site, "--listen", listen) as server:
        status = (await server.get("/v1/status", headers={"Authorization": "Bearer k3y"})).json
        assert status["tls"] is None
        hints = [one["hint"] for one in server.events("no_tls", level="warning")]
        assert hints == status["notices"]
        problems = [one["text"] for one in status["problems"] if one["kind"] == "no_tls"]
        assert problems == hints
        assert [text.startswith("other machines reach 0.0.0.0 without TLS") for text in hints] == [True] * warned


# --- handshakes


async def test_who_never_ends_a_handshake_keeps_nobody_out(secure: Site, authority: trustme.CA) -> None:
    secure.configure(ECHO, gateway=f"{TLS}\nmax_connections: 4\nread_timeout: 1h")
    async with served(secure, tls=trusting(authority)) as server:
        with contextlib.ExitStack() as stack:
            silent = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), PATIENCE)) for _ in range(200)
            ]
            assert (await server.do("echo/Go")).status == 200
            assert await asyncio.to_thread(silent[0].recv, 1) == b""  # the first ones had to go
            await eventually(lambda: server.events("handshakes_failed"))
            await eventually(lambda: server.descriptors() < 150)


async def test_a_handshake_has_a_bound_in_time(secure: Site, authority: trustme.CA) -> None:
    secure.configure(gateway=f"{TLS}\nread_timeout: 500ms")
    async with served(secure, tls=trusting(authority)) as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as silent:
            assert await asyncio.to_thread(silent.recv, 1) == b""


async def test_plain_http_at_such_a_port_is_no_request_and_is_told(secure: Site, authority: trustme.CA) -> None:
    async with served(secure, tls=trusting(authority)) as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as plain:
            plain.sendall(b"GET /liveness HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"HTTP" not in await asyncio.to_thread(plain.recv, 1000)
        [told] = await eventually(lambda: server.events("handshakes_failed", address="127.0.0.1"))
        assert (told["count"], told["reason"]) == (1, "HTTP_REQUEST")
        assert (await server.get("/liveness")).status == 200


# --- certificates of callers


@pytest.mark.parametrize("clients", ["required", "optional"])
async def test_callers_show_certificates_of_the_authority(
    secure: Site, authority: trustme.CA, other: trustme.CA, clients: str
) -> None:
    trust(secure, other)
    secure.configure(ECHO, gateway=MUTUAL % clients)
    async with served(secure, tls=trusting(authority, other.issue_cert(common_name="acme"))) as server:
        assert (await server.do("echo/Go")).status == 200
        assert (await server.status())["tls"]["client_certificates"] == clients
        stranger = trusting(authority, authority.issue_cert(common_name="acme"))
        assert not await reaches(server, stranger)
        await eventually(lambda: [one for one in server.events("handshakes_failed") if "certificate" in one["reason"]])
        assert await reaches(server, trusting(authority)) == (clients == "optional")


async def reaches(server: Server, context: ssl.SSLContext) -> bool:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        try:
            async with session.get(f"{server.url}/liveness") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, OSError):
            return False


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
async def test_an_authority_that_is_gone_is_believed_no_more_nor_are_sessions_of_its_time(
    secure: Site, authority: trustme.CA, other: trustme.CA, version: ssl.TLSVersion
) -> None:
    trust(secure, other)
    secure.configure(gateway=MUTUAL % "required")
    context = trusting(authority, other.issue_cert(common_name="acme"))
    context.maximum_version = version
    async with served(secure, tls=trusting(authority, other.issue_cert(common_name="acme"))) as server:

        def session(**options: Any) -> tuple[ssl.SSLSession | None, bytes]:
            with connected(server, context, **options) as connection:
                connection.sendall(b"GET /liveness HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return connection.session, connection.recv(1000)

        before, answer = await asyncio.to_thread(session)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert (await asyncio.to_thread(session, session=before))[1].startswith(b"HTTP/1.1 200 ")
        trust(secure, authority)
        await eventually(lambda: server.events("tls_loaded"))

        def refused() -> bool:
            try:
                return session(session=before)[1] == b""
            except (ssl.SSLError, ConnectionError):
                return True

        assert await asyncio.to_thread(refused)


@contextlib.asynccontextmanager
async def telling(files: Tls) -> AsyncIterator[str]:
    """Have a server that answers whom a caller's certificate names; give its URL."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(certified(request))

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=make(files).context).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_the_subject_names_the_caller(site: Site, authority: trustme.CA, other: trustme.CA) -> None:
    install(site, authority.issue_cert(*HOSTS))
    trust(site, other)
    at = site.folder
    files = Tls(cert=at / "tls.crt", key=at / "tls.key", client_ca=at / "ca.crt", required=False)
    shows = {
        "acme": other.issue_cert(common_name="acme"),
        "ac me/ü": other.issue_cert(common_name="ac me/ü"),
        "": other.issue_cert("acme"),  # names of hosts are no subject
        None: None,
    }
    async with telling(files) as url:
        for name, leaf in shows.items():
            async with (
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting(authority, leaf))) as session,
                session.get(url) as answer,
            ):
                assert await answer.json() == name


async def test_a_certificate_is_its_clients_as_a_key_is(secure: Site, authority: trustme.CA, other: trustme.CA) -> None:
    trust(secure, other)
    secure.configure(ECHO, gateway=MUTUAL % "optional")
    (secure.folder / "clients.d").mkdir()
    for name in ("acme", "beta"):
        digest = hashlib.sha256(f"key of {name}".encode()).hexdigest()
        own = f"{name}s: {{run: [cat], commands: {{Go: {{}}}}}}"
        (secure.folder / f"clients.d/{name}.yaml").write_text(
            f"keys: [{{sha256: '{digest}', role: operator}}]\nconnectors: {{{own}}}\n"
        )
    async with served(secure, env={"CONNECTOR_PROXY_API_KEY": "single"}, tls=trusting(authority)) as server:

        async def asked(name: str | None, key: str | None = None, path: str = "/v1/commands") -> Any:
            leaf = other.issue_cert("some.host", common_name=name or None) if name is not None else None
            headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
            connector = aiohttp.TCPConnector(ssl=trusting(authority, leaf))
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(server.url + path, headers=headers) as answer,
            ):
                body = await answer.json()
                return (
                    [one["id"] for one in body] if path.endswith("commands") and answer.status == 200 else answer.status
                )

        assert await asked("acme") == ["acmes/Go", "echo/Go"]
        assert await asked("beta") == ["betas/Go", "echo/Go"]
        assert await asked("default") == ["echo/Go"]
        assert await asked("acme", "key of acme") == ["acmes/Go", "echo/Go"]
        assert await asked(None, "key of acme") == ["acmes/Go", "echo/Go"]
        refused = [
            (None, None), ("gone", None), ("", None), ("ACME", None), ("acme", "key of beta"),
            ("acme", "rubbish"), ("gone", "key of acme"), ("acme", "single"), ("gone", "single"),
        ]  # fmt: skip
        assert [await asked(*one) for one in refused] == [401] * len(refused)
        assert await asked("acme", None, "/clients/acme/v1/commands") == ["acmes/Go", "echo/Go"]
        assert await asked("acme", None, "/clients/beta/v1/commands") == 401
        assert await asked("acme", None, "/v1/status?client=beta") == 403  # no operator
        assert await asked("acme", "key of acme", "/v1/status?client=beta") == 200


# --- Unix sockets beside it


async def test_a_unix_socket_beside_it_is_plain_and_outlives_a_gateway(short_site: Site, authority: trustme.CA) -> None:
    site = short_site
    install(site, authority.issue_cert(*HOSTS))
    site.configure(ECHO, gateway=TLS)
    path = site.folder / "gw.sock"
    async with served(site, "--listen", f"unix:{path}", "--restart", tls=trusting(authority)) as server:
        first = await kept(server)
        os.kill(first, signal.SIGKILL)
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.post("http://localhost/v1/do/echo/Go", json={}) as answer,
        ):
            assert answer.status == 200
        assert (await server.do("echo/Go")).status == 200
        assert await kept(server) != first
        assert server.events("listening", path=str(path), tls=False)
    assert not path.exists()
