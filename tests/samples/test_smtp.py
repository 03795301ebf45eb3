"""The sample `smtp` before real mail servers."""

from __future__ import annotations

import base64
import email
import email.policy
import socket
import ssl
from typing import TYPE_CHECKING, Any, Self

import pytest
import pytest_asyncio
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult

from tests.samples.conftest import configured, free_port
from tests.support import Server, eventually, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from email.message import EmailMessage
    from pathlib import Path

    from aiosmtpd.smtp import Envelope, LoginPassword, Session

USER, PASSWORD = "robot", "correct horse"
MAIL = {"to": "ada@example.org", "subject": "Order 17", "body": "It is on its way.\n"}


class Inbox:
    """What a server does with mails: it keeps them, and refuses some recipients."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("nobody"):
            return "550 5.1.1 there is no such mailbox"
        if address.startswith("full"):
            return "452 4.2.2 the mailbox is full"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if b"Subject: spam" in (envelope.content or b""):
            return "554 5.7.1 this looks like spam"
        self.envelopes.append(envelope)
        return "250 OK"


class MailServer:
    """A server in a thread of its own."""

    def __init__(self, **options: Any) -> None:
        self.inbox = Inbox()
        self._controller = Controller(self.inbox, hostname="127.0.0.1", port=free_port(), **options)
        self.port = self._controller.port

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()


def authenticate(
    server: SMTP, session: Session, envelope: Envelope, mechanism: str, auth_data: LoginPassword
) -> AuthResult:
    return AuthResult(
        success=(auth_data.login, auth_data.password) == (USER.encode(), PASSWORD.encode()), handled=False
    )


@pytest.fixture(scope="module")
def plain() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(authority: trustme.CA) -> Iterator[MailServer]:
    """STARTTLS, and then a password."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with MailServer(
        tls_context=context, require_starttls=True, authenticator=authenticate, auth_required=True
    ) as server:
        yield server


@pytest.fixture(scope="module")
def silent() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    samples: Path, plain: MailServer, secure: MailServer, authority: trustme.CA, silent: int
) -> AsyncIterator[Server]:
    (samples / "ca.pem").write_bytes(authority.cert_pem.bytes())
    code = "runtime: python, module: ./connectors.d/smtp/mail.py"
    clear = "SMTP_HOST: 127.0.0.1, SMTP_STARTTLS: false, SMTP_FROM: Robot <robot@example.org>"
    tls = f"SMTP_HOST: 127.0.0.1, SMTP_PORT: {secure.port}, SMTP_FROM: robot@example.org, SMTP_USER: {USER}"
    trusted = f"SMTP_CA_FILE: {samples}/ca.pem"
    site = configured(
        samples,
        "smtp",
        f"""
        smtp: {{config: {{{clear}, SMTP_PORT: {plain.port}}}}}
        unset: {{{code}}}
        secure: {{{code}, config: {{{tls}, SMTP_PASSWORD: {PASSWORD}, {trusted}}}}}
        impostor: {{{code}, config: {{{tls}, SMTP_PASSWORD: {PASSWORD}}}}}
        intruder: {{{code}, config: {{{tls}, SMTP_PASSWORD: wrong horse, {trusted}}}}}
        optimist: {{{code}, config: {{SMTP_HOST: 127.0.0.1, SMTP_PORT: {plain.port}, SMTP_FROM: robot@example.org}}}}
        nowhere: {{{code}, config: {{{clear}, SMTP_PORT: {free_port()}}}}}
        silent: {{{code}, timeout: 2500ms, config: {{{clear}, SMTP_PORT: {silent}}}}}
        """,
    )
    async with served(site) as gateway:
        yield gateway


@pytest.fixture(autouse=True)
def emptied(plain: MailServer, secure: MailServer) -> None:
    plain.inbox.envelopes.clear()
    secure.inbox.envelopes.clear()


def only(server: MailServer) -> tuple[Envelope, EmailMessage]:
    (envelope,) = server.inbox.envelopes
    assert isinstance(envelope.content, bytes)
    content = envelope.content.replace(b"\r\n", b"\n")
    return envelope, email.message_from_bytes(content, policy=email.policy.default)  # type: ignore[return-value]


async def test_its_commands_are_listed(gateway: Server) -> None:
    assert sorted(one for one in await gateway.commands() if one.startswith("smtp/")) == ["smtp/SendEmail"]


async def test_a_mail_arrives(gateway: Server, plain: MailServer) -> None:
    answer = await gateway.do("smtp/SendEmail", {**MAIL, "subject": "Order 17 ☃", "body": "Ærlig talt\n"})
    assert (answer.status, answer.code) == (200, None)
    envelope, message = only(plain)
    assert (envelope.mail_from, envelope.rcpt_tos) == ("robot@example.org", ["ada@example.org"])
    assert (message["Subject"], message["From"], message["To"]) == (
        "Order 17 ☃",
        "Robot <robot@example.org>",
        "ada@example.org",
    )
    assert message.get_content() == "Ærlig talt\n"
    assert message["Message-ID"] == answer.body["message_id"]
    assert answer.body["refused"] == {}


async def test_html_and_attachments_arrive_beside_the_text(gateway: Server, plain: MailServer) -> None:
    pdf = base64.b64encode(b"%PDF-1.7 \xff").decode()
    attachments = [{"name": "rechnung-ö.pdf", "content": pdf}, {"name": "data", "content": "", "mimetype": "text/csv"}]
    answer = await gateway.do("smtp/SendEmail", {**MAIL, "html": "<b>It is</b>", "attachments": attachments})
    assert answer.code is None
    _, message = only(plain)
    body, html = message.get_body(("plain",)), message.get_body(("html",))
    assert body is not None
    assert html is not None
    assert (body.get_content(), html.get_content()) == (MAIL["body"], "<b>It is</b>\n")
    first, second = message.iter_attachments()
    assert (first.get_filename(), first.get_content_type()) == ("rechnung-ö.pdf", "application/pdf")
    assert first.get_content() == b"%PDF-1.7 \xff"
    assert second.get_content_type() == "text/csv"


async def test_a_blind_copy_is_delivered_and_not_shown(gateway: Server, plain: MailServer) -> None:
    people = {
        "to": ["ada@example.org", "Grace <grace@example.org>"],
        "cc": "Kay <kay@example.org>",
        "bcc": "eve@example.org",
    }
    await gateway.do("smtp/SendEmail", {**MAIL, **people, "reply_to": "desk@example.org", "sender": "boss@example.org"})
    envelope, message = only(plain)
    assert envelope.rcpt_tos == ["ada@example.org", "grace@example.org", "kay@example.org", "eve@example.org"]
    assert (message["To"], message["Cc"]) == ("ada@example.org, Grace <grace@example.org>", "Kay <kay@example.org>")
    assert (message["Reply-To"], message["From"], message["Bcc"]) == ("desk@example.org", "boss@example.org", None)


async def test_a_recipient_that_is_refused_beside_others_is_named(gateway: Server, plain: MailServer) -> None:
    answer = await gateway.do("smtp/SendEmail", {**MAIL, "cc": "nobody@example.org"})
    assert answer.body["refused"] == {"nobody@example.org": "550 5.1.1 there is no such mailbox"}
    assert only(plain)[0].rcpt_tos == ["ada@example.org"]


async def test_it_goes_over_tls_and_with_a_password(gateway: Server, secure: MailServer) -> None:
    answer = await gateway.do("secure/SendEmail", MAIL)
    assert (answer.status, answer.code) == (200, None)
    assert only(secure)[1]["Subject"] == "Order 17"


@pytest.mark.parametrize(
    ("connector", "params", "code", "later", "words"),
    [
        ("unset", {}, "smtp_not_configured", False, "set config.SMTP_HOST"),
        ("smtp", {"to": "nobody@example.org"}, "smtp_recipients_refused", False, "no such mailbox"),
        ("smtp", {"to": "full@example.org"}, "smtp_recipients_refused", True, "the mailbox is full"),
        ("smtp", {"subject": "spam"}, "smtp_rejected", False, "554 5.7.1 this looks like spam"),
        ("smtp", {"to": "ada"}, "smtp_invalid_message", False, "'ada' is not a mail address"),
        ("smtp", {"to": []}, "smtp_invalid_message", False, "nobody to send it to"),
        ("smtp", {"to": "a@example.org\nBcc: eve@example.org"}, "smtp_invalid_message", False, "not a mail address"),
        ("smtp", {"subject": "a\nBcc: eve@example.org"}, "smtp_invalid_message", False, "subject: must be one line"),
        ("smtp", {"attachments": [{"name": "a", "content": "%"}]}, "smtp_invalid_message", False, "attachment 1"),
        ("smtp", {"attachments": [{"name": "a"}]}, "smtp_invalid_message", False, "attachment 1: needs a name"),
        ("smtp", {"attachments": [{"name": "a", "content": "", "mimetype": "x"}]}, "smtp_invalid_message", False, "no mimetype"),
        ("impostor", {}, "smtp_tls_failed", False, "certificate verify failed"),
        ("optimist", {}, "smtp_tls_failed", False, "STARTTLS"),
        ("intruder", {}, "smtp_authentication_failed", False, "535"),
        ("nowhere", {}, "smtp_unreachable", True, "refused"),
        ("silent", {}, "smtp_unreachable", True, "timed out"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_told(
    gateway: Server,
    plain: MailServer,
    secure: MailServer,
    connector: str,
    params: dict[str, Any],
    code: str,
    later: bool,
    words: str,
) -> None:
    answer = await gateway.do(f"{connector}/SendEmail", {**MAIL, **params})
    assert (answer.status, answer.code) == (200, code), answer.json
    assert words in answer.message
    assert answer.json["command_response"].get("http_status") == (503 if later else None)
    assert not plain.inbox.envelopes
    assert not secure.inbox.envelopes


async def test_the_password_is_in_no_message(gateway: Server) -> None:
    await gateway.do("intruder/SendEmail", MAIL)
    await eventually(lambda: gateway.events("run", connector="intruder"))
    assert "wrong horse" not in gateway.log()
