"""Mail over SMTP. Standard library only.

| error | what | http_status |
| --- | --- | --- |
| smtp_not_configured | `config` lacks a server or a sender | |
| smtp_invalid_message | an address, a header or an attachment cannot be used | |
| smtp_unreachable | no connection, or it broke | 503 |
| smtp_tls_failed | no STARTTLS there, or a certificate that does not verify | |
| smtp_authentication_failed | user and password were refused | |
| smtp_recipients_refused | not one of the recipients was accepted | 503 when the server says: later |
| smtp_rejected | the server refused the mail | 503 when the server says: later |
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import mimetypes
import smtplib
import ssl
from email import policy
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from email.headerregistry import Address

__all__ = ["SendEmail"]

IMPLICIT_TLS = 465
OFF = {"false", "no", "off", "0"}
MARGIN = 1.0  # seconds before the deadline, to tell what happened


class Problem(Exception):
    """Something to tell the caller."""

    def __init__(self, code: str, message: str, *, later: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.later = later

    def told(self) -> dict[str, Any]:
        error = {"error": {"error_code": self.code, "message": str(self)}}
        return {**error, "http_status": 503} if self.later else error


def telling(command: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Answer a `Problem` as an error."""

    @functools.wraps(command)
    def told(**arguments: Any) -> dict[str, Any]:
        try:
            return command(**arguments)
        except Problem as problem:
            return problem.told()

    return told


@telling
def SendEmail(
    *,
    config: dict[str, Any],
    context: dict[str, Any],
    to: str | list[str],
    subject: str,
    body: str,
    html: str | None = None,
    cc: str | list[str] | None = None,
    bcc: str | list[str] | None = None,
    reply_to: str | None = None,
    sender: str | None = None,
    attachments: list[dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Send a mail.

    Args:
        to: One address or several; "Ada <ada@example.org>" is one too.
        subject: One line.
        body: The text.
        html: The same as HTML, for readers that show it.
        cc: Who gets a copy, for everybody to see.
        bcc: Who gets a copy, for nobody to see.
        reply_to: Where answers should go.
        sender: In place of SMTP_FROM.
        attachments: Objects with name, content (in base64) and mimetype (else guessed from the name).
    """
    server = _Server(config)
    message = EmailMessage(policy=policy.SMTP)
    recipients = [*_addresses(to), *_addresses(cc), *_addresses(bcc)]  # bcc never stands in the mail
    if not recipients:
        raise Problem("smtp_invalid_message", "there is nobody to send it to")
    for header, given in (("From", sender or server.sender), ("To", to), ("Cc", cc), ("Reply-To", reply_to)):
        if given:
            message[header] = tuple(_addresses(given))
    try:
        message["Subject"] = subject
    except ValueError as problem:
        raise Problem("smtp_invalid_message", "subject: must be one line") from problem
    message["Date"] = formatdate()
    message["Message-ID"] = make_msgid(domain=message["From"].addresses[0].domain)
    message.set_content(body)
    if html is not None:
        message.add_alternative(html, subtype="html")
    for number, attachment in enumerate(attachments or (), start=1):
        _attach(message, attachment, number)
    refused = server.send(message, recipients, timeout=max(1.0, context["deadline_ms"] / 1000 - MARGIN))
    return {"message_id": message["Message-ID"], "refused": refused}


def _attach(message: EmailMessage, attachment: dict[str, Any], number: int) -> None:
    name, content = attachment.get("name"), attachment.get("content")
    if not isinstance(name, str) or not isinstance(content, str) or not name.isprintable():
        raise Problem("smtp_invalid_message", f"attachment {number}: needs a name, and its content in base64")
    mimetype = attachment.get("mimetype") or mimetypes.guess_type(name)[0] or "application/octet-stream"
    maintype, _, subtype = str(mimetype).partition("/")
    if not (maintype.isidentifier() and subtype and subtype.isprintable() and " " not in subtype):
        raise Problem("smtp_invalid_message", f"attachment {number}: {mimetype!r} is no mimetype")
    try:
        data = base64.b64decode(content, validate=True)
    except binascii.Error as problem:
        raise Problem("smtp_invalid_message", f"attachment {number}: the content is not base64: {problem}") from problem
    message.add_attachment(data, maintype=maintype, subtype=subtype, filename=name)


def _addresses(given: str | list[str] | None) -> list[Address]:
    """Read addresses as a mail's header does."""
    found: list[Address] = []
    for text in [given] if isinstance(given, str) else given or ():
        header = EmailMessage(policy=policy.SMTP)
        with contextlib.suppress(ValueError, IndexError):
            header["To"] = text
        addresses = header["To"].addresses if "To" in header else ()
        if not addresses or header["To"].defects or any(not each.domain for each in addresses):
            raise Problem("smtp_invalid_message", f"{text!r} is not a mail address")
        found += addresses
    return found


class _Server:
    """What `config` says."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.host = _text(config, "SMTP_HOST")
        if not self.host:
            raise Problem("smtp_not_configured", "set config.SMTP_HOST, and what else the server needs")
        port = _text(config, "SMTP_PORT") or "587"
        if not port.isdecimal():
            raise Problem("smtp_not_configured", f"config.SMTP_PORT: {port!r} is not a port")
        self.port = int(port)
        self.user = _text(config, "SMTP_USER")
        self.password = _text(config, "SMTP_PASSWORD")
        self.sender = _text(config, "SMTP_FROM") or self.user
        if not self.sender:
            raise Problem("smtp_not_configured", "set config.SMTP_FROM")
        self.starttls = self.port != IMPLICIT_TLS and _text(config, "SMTP_STARTTLS").lower() not in OFF
        try:
            self.context = ssl.create_default_context(cafile=_text(config, "SMTP_CA_FILE") or None)
        except OSError as problem:
            raise Problem("smtp_not_configured", f"config.SMTP_CA_FILE: {problem}") from problem

    def send(self, message: EmailMessage, recipients: list[Address], *, timeout: float) -> dict[str, str]:
        """Return who was refused, with the server's words, although others were not."""
        where = f"{self.host}:{self.port}"
        try:
            with self._connection(timeout) as server:
                if self.starttls:
                    server.starttls(context=self.context)
                if self.user:
                    server.login(self.user, self.password)
                sender = message["From"].addresses[0].addr_spec
                return _refused(server.send_message(message, sender, [each.addr_spec for each in recipients]))
        except ssl.SSLError as problem:
            raise Problem("smtp_tls_failed", f"{where}: {problem}") from problem
        except smtplib.SMTPAuthenticationError as problem:
            raise Problem("smtp_authentication_failed", f"{where}: {_words(problem)}") from problem
        except smtplib.SMTPNotSupportedError as problem:
            code = "smtp_tls_failed" if "STARTTLS" in str(problem) else "smtp_authentication_failed"
            raise Problem(code, f"{where}: {problem}") from problem
        except smtplib.SMTPRecipientsRefused as problem:
            words = "; ".join(f"{who}: {text}" for who, text in _refused(problem.recipients).items())
            later = all(_is_temporary(code) for code, _ in problem.recipients.values())
            raise Problem("smtp_recipients_refused", words, later=later) from problem
        except smtplib.SMTPResponseException as problem:
            later = _is_temporary(problem.smtp_code)
            raise Problem("smtp_rejected", f"{where}: {_words(problem)}", later=later) from problem
        except (OSError, smtplib.SMTPException) as problem:
            raise Problem("smtp_unreachable", f"{where}: {problem}", later=True) from problem

    def _connection(self, timeout: float) -> smtplib.SMTP:
        if self.port == IMPLICIT_TLS:
            return smtplib.SMTP_SSL(self.host, self.port, timeout=timeout, context=self.context)
        return smtplib.SMTP(self.host, self.port, timeout=timeout)


def _refused(recipients: dict[str, tuple[int, bytes]]) -> dict[str, str]:
    return {who: f"{code} {text.decode(errors='replace')}" for who, (code, text) in recipients.items()}


def _words(problem: smtplib.SMTPResponseException) -> str:
    text = problem.smtp_error
    return f"{problem.smtp_code} {text.decode(errors='replace') if isinstance(text, bytes) else text}"


def _is_temporary(code: int) -> bool:
    return 400 <= code < 500


def _text(config: dict[str, Any], key: str) -> str:
    value = config.get(key)
    return "" if value is None else str(value).strip()
