"""Which names tell that a value is a secret, and which secrets stand within texts."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gateway.observe.telling import secrets_in, secrets_within, tells, tells_plainly

SECRET_NAMES = """
    password passwords passphrase pass SMTP_PASS smtpPass pwd db_pwd dbPwd MYSQL_PWD PGPASSWORD password2 passwd pw
    api-key api_key apiKey APIKey apikey X-Api-Key Spiff-Connector-Proxy-Api-Key api_keys stripe_key key KEY
    authorization Authorization Proxy-Authorization bearer bearer_token pin PIN userPIN pinCode pincode passcode
    signing_key signingKey private_key privateKey private_key_passphrase master-key access_key_id AWS_SECRET_ACCESS_KEY
    secret secrets client_secret clientSecret secret_id credential credentials creds token tokens accessToken token1
    GITHUB_TOKEN oauth2Token authToken refresh_tokens dbpassword cookie Set-Cookie session_id jwt webhook_url
    GOOGLE_APPLICATION_CREDENTIALS SSHPASS keystore_password passwort
"""
PLAIN_NAMES = """
    bypass passenger passengers compass compassion surpass passive passport_number spin pinned pinning shopping pineapple
    token_url tokenUrl tokenizer tokenize max_tokens maxTokens prompt_tokens token_type token_endpoint token_ttl
    keyboard monkey keynote hotkey keys public_key ssh_public_key primary_key sort_key cache_key routing_key key_count
    private_key_path privateKeyFile password_file credentials_file password_min_length secret_name
    author authority authorize_url authorization_url username user user_id client_id secretary cookiecutter
    PWD OLDPWD path host region header headers typeahead description spa mapping count patient
"""
TEXTS: list[tuple[str, set[str]]] = [
    ("postgres://u:pw12@h:5432/db", {"pw12"}),
    ("postgres://u:p%40ss@h/db", {"p%40ss", "p@ss"}),
    ("redis://:s3cr3t@h:6379/0", {"s3cr3t"}),
    ("jdbc:postgresql://u:pw12@h/db?ssl=true", {"pw12"}),
    ("jdbc:sqlserver://h;user=sa;password=Pa55!;encrypt=true", {"Pa55!"}),
    ("jdbc:oracle:thin:scott/tiger@h:1521/x", {"tiger"}),
    ("u:pw12@tcp(h:3306)/db", {"pw12"}),
    ("https://ghp_abc123@github.com/x/y", {"ghp_abc123"}),
    ("https://u:x-oauth-basic@github.com/x", {"u"}),
    ("Server=h;Database=d;User Id=u;Password=p w d;", {"p", "p w d"}),
    ("Driver={X};Server=h;Uid=u;Pwd={a b};", {"a b"}),
    ("Endpoint=sb://h/;Shared Access Key=ab+/==;x=1", {"ab+/=="}),
    ("AccountName=x;AccountKey=ab+/==;EndpointSuffix=y", {"ab+/=="}),
    ("host=h dbname=d user=u password=pw123", {"pw123"}),
    ("host=h password='p w' user=u", {"p w"}),
    ("https://h/x?page=2&token=abcdef&b=1", {"abcdef"}),
    ("https://h/x?sv=1&sig=12345678", {"12345678"}),
    ("Authorization: Bearer abc.def", {"Bearer abc.def", "abc.def"}),
    ("Authorization: Basic bWU6aHVudGVyMg==", {"Basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg==", "hunter2"}),
    ("Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", {"Bearer eyJhbGciOiJIUzI1NiJ9.e30.x", "eyJhbGciOiJIUzI1NiJ9.e30.x"}),
    ("sent basic bWU6aHVudGVyMg== to h", {"basic bWU6aHVudGVyMg==", "bWU6aHVudGVyMg==", "hunter2"}),
    ("Bearer short1", set()),
    ("the bearer certificates-of-origin", set()),
    ("curl -u me:hunter2 https://h/", {"hunter2"}),
    ("tool --password hunter2 -v", {"hunter2"}),
    ("--token=hun\"te'r 2", {"hun\"te'r 2"}),
    ("x --token=hun\"te'r2 y", {"hun\"te'r2"}),
    ("tool --api-key='hunter 2' -v", {"hunter 2"}),
    ('{"a": [[{"password": "x1234"}]]}', {"x1234"}),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE", {"-----BEGIN RSA PRIVATE KEY-----\nMIIE"}),
    ("print(sorted(rows, key=len))", set()),
    ("git@github.com:x/y.git", set()),
    ("mailto:joe@example.org", set()),
    ("https://example.org/a?page=2", set()),
    ("note: the keyboard is: broken", set()),
    ("", set()),
]


@pytest.mark.parametrize("name", SECRET_NAMES.split())
def test_a_name_tells(name: str) -> None:
    assert tells(name)


@pytest.mark.parametrize("name", PLAIN_NAMES.split())
def test_a_name_does_not_tell(name: str) -> None:
    assert not tells(name)


def test_key_alone_may_be_anything_where_it_is_not_a_setting() -> None:
    assert [tells_plainly(name) for name in ("key", "sort_key", "stripe_key", "api_key", "API_KEY", "password")] == [
        False, False, False, True, True, True
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "secrets"), TEXTS, ids=[text[:20] for text, _ in TEXTS])
def test_secrets_within_texts(text: str, secrets: set[str]) -> None:
    found = set(secrets_within(text))
    assert secrets <= found
    assert bool(secrets) == bool(found)


@pytest.mark.parametrize(
    ("settings", "secrets"),
    [
        ({"credentials": {"value": "one", "more": [[{"deep": "two"}], 1234]}}, {"one", "two", "1234"}),
        ({"api_keys": ["one", "two"], "other": ["three"]}, {"one", "two"}),
        ({"a": [[{"token": "one"}]]}, {"one"}),
        ({"pin": 1234, "token": True, "password": None, "secret": 2.0}, {"1234", "2.0", "2"}),
        ({"run": ["./x", "--password", "one", "--verbose", "two", "--token=three"]}, {"one", "three"}),
        ({"run": ["./x", "-H", "Authorization: Bearer one", "-e", "API_TOKEN=two"]}, {"Bearer one", "one", "two"}),
        ({"headers": {"Authorization": "Bearer one"}}, {"Bearer one", "one"}),
        ({"url": "https://u:one@h/"}, {"one"}),
        ({"token_url": "https://h/token"}, set()),
        ([], set()),
        (None, set()),
    ],
)
def test_what_stands_below_a_key_that_tells_is_secret(settings: Any, secrets: set[str]) -> None:
    assert set(secrets_in(settings)) == secrets


@pytest.mark.parametrize(
    "piece",
    ["://a:", "a.b-", "password=x;", "token='", "a={", "jdbc:oracle:x", "x", "x -", "a=", "[", "?a", "key:", "bearer "],
)
def test_no_text_takes_long(piece: str) -> None:
    begun = time.process_time()
    list(secrets_within("@=" + piece * (20_000 // len(piece))))
    assert time.process_time() - begun < 5  # what is quadratic takes minutes
