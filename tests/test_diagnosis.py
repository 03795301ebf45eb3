"""What failed programs' own words tell of the cause."""

from __future__ import annotations

import pytest

from gateway.diagnosis import SAID, WORDS, cause_of, gist, lack_of, log_of, telling

NODE = """node:internal/modules/cjs/loader:1080
  throw err;
  ^

Error: Cannot find module 'left-pad'
Require stack:
- /srv/fax.js
  code: 'MODULE_NOT_FOUND',
Node.js v18.19.0"""
JAVA = """Exception in thread "main" java.lang.IllegalStateException: no start
\tat Main.main(Main.java:3)
Caused by: java.lang.ClassNotFoundException: org.apache.pdfbox.Loader
\tat java.base/java.net.URLClassLoader.findClass(URLClassLoader.java:445)"""
PYTHON = """Traceback (most recent call last):
  File "/srv/crm.py", line 2, in <module>
    import xero.api
ModuleNotFoundError: No module named 'xero.api'"""


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (PYTHON, "xero.api"),
        (NODE, "left-pad"),
        ("Error [ERR_MODULE_NOT_FOUND]: Cannot find package '@aws-sdk/client-s3' imported from /srv/a.mjs", "@aws-sdk/client-s3"),
        (JAVA, "org.apache.pdfbox.Loader"),
        ("/srv/fax: error while loading shared libraries: libtiff.so.5: cannot open shared object file", "libtiff.so.5"),
        ("./fax.sh: 3: pdftotext: not found", "pdftotext"),
        ("./fax.sh: line 3: pdftotext: command not found", "pdftotext"),
        ("bash: g++-12: command not found", "g++-12"),
        ("/usr/bin/env: \u2018python4\u2019: No such file or directory", "python4"),
        ("Can't locate Net/Fax.pm in @INC (you may need to install the Net::Fax module)", "Net/Fax.pm"),
        ("<internal>: in `require': cannot load such file -- prawn (LoadError)", "prawn"),
    ],
)  # fmt: skip
def test_a_package_that_is_missing_is_named(said: str, name: str) -> None:
    cause = cause_of(said)
    assert cause is not None
    assert cause == lack_of(said)
    assert cause.text == f"it lacks a package or program, {name}"
    assert f"add {name} to" in cause.remedy


@pytest.mark.parametrize(
    "said",
    [
        "401: bad password for user fax",
        "403",
        "401 Client Error: Unauthorized for url: https://api.example/contacts",
        "requests.exceptions.HTTPError: HTTP 401",
        "status code 403",
        "smtplib.SMTPAuthenticationError: (535, b'5.7.8 Error: authentication failed')",
        'FATAL:  password authentication failed for user "fax"',
        "invalid_client",
        "Invalid API key",
        "the access key is no more: expired token",
        "An error occurred (InvalidClientTokenId) when calling the GetCallerIdentity operation",
        "botocore.exceptions.ClientError: An error occurred (AccessDenied) when calling PutObject",
        "Bad credentials",
    ],
)
def test_what_refuses_a_secret_is_told(said: str) -> None:
    cause = cause_of(said)
    assert cause is not None
    assert "wrong secret" in cause.text


@pytest.mark.parametrize(
    "said",
    ["", "404", "no_carrier: the line is dead", "fax/Send died of SIGKILL (after 401.00 s)", "took 403 ms", "order 401 was not found",
     "connectors.fax.path: unknown key (did you mean auths?)", "customer not found", "the fax was not authorised to be read aloud"],
)  # fmt: skip
def test_what_says_nothing_of_a_cause_has_none(said: str) -> None:
    assert cause_of(said) is None


@pytest.mark.parametrize(
    "said",
    [
        "MemoryError: MemoryError",
        'Exception in thread "main" java.lang.OutOfMemoryError: Java heap space',
        "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory",
        "fork: Cannot allocate memory",
    ],
)
def test_what_runs_out_of_memory_by_itself_is_told(said: str) -> None:
    cause = cause_of(said)
    assert cause is not None
    assert cause.text == "it runs out of memory"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (
            'Current thread 0x1 (most recent call first):\n  File "/srv/host.py", line 91 in <module>',
            "Current thread 0x1 (most recent call first):",
        ),
        ('  File "/srv/host.py", line 91 in <module>', ""),
        (PYTHON, "ModuleNotFoundError: No module named 'xero.api'"),
        (NODE, "Error: Cannot find module 'left-pad'"),
        (JAVA, "Caused by: java.lang.ClassNotFoundException: org.apache.pdfbox.Loader"),
        ("one\n\n  two  \n\n", "two"),
        ("", ""),
        (" \n", ""),
        ("x" * 900, "x" * SAID + "..."),
    ],
)
def test_the_line_that_tells_most_is_taken_of_a_log(log: str, line: str) -> None:
    assert telling(log) == line


def test_a_message_is_told_in_one_line_of_a_bounded_length() -> None:
    assert gist(f"fax/Send failed\n with exit status 1; stderr: {PYTHON}") == (
        "fax/Send failed with exit status 1: ModuleNotFoundError: No module named 'xero.api'"
    )
    assert gist("fax/Send died of SIGKILL") == "fax/Send died of SIGKILL"
    assert len(gist("y" * 9000 + "; stderr: " + "x" * 9000)) == WORDS + SAID + len("...: ...")
    assert log_of("died; stderr: a\nb") == "a\nb"
    assert log_of("died") == ""
