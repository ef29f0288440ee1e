"""No secret leaves, in whatever form it was written down."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.redaction import (
    REMOVED,
    Redactor,
    UnreadableSecretError,
    secrets_in,
    secrets_of,
)

SALT = b"salt"
PEM = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49
AgEGCCqGSM49AwEHBG0w
-----END PRIVATE KEY-----
"""
NOBODY = 65534
secrets = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r\n", exclude_categories=["Cs"]),
    min_size=8,
    max_size=40,
).filter(lambda text: text.strip() == text and len(set(text)) > 4 and "removed" not in text)


def clean(*known: str, tokens: tuple[str, ...] = ()) -> Redactor:
    return Redactor(known, tokens, SALT)


@given(secrets, st.text(max_size=30), st.text(max_size=30))
def test_a_secret_is_gone_in_every_form(secret: str, before: str, after: str) -> None:
    redactor = clean(secret)
    forms = [secret, quote(secret, safe=""), json.dumps(secret)[1:-1], secret.encode().hex()]
    forms.append(base64.b64encode(secret.encode()).decode())
    for form in forms:
        assert form not in redactor.text(f"{before} {form} {after}")
    assert secret not in json.dumps(redactor.plain({"why": secret}), ensure_ascii=False)


@given(secrets, st.from_regex(r"[A-Za-z0-9-]{1,20}", fullmatch=True))
def test_a_password_in_a_basic_header_is_gone(secret: str, user: str) -> None:
    header = base64.b64encode(f"{user}:{secret}".encode()).decode()
    shown = clean(secret).text(f"Authorization: Basic {header}")
    assert REMOVED in shown
    assert header not in shown


def test_what_a_name_says_is_secret_is_left_out_whatever_it_holds() -> None:
    told = {"password": "a", "site_key": "b", "key": "c", "pin": "1", "api_key": "d", "name": "e"}
    told |= {"auth_token": "f", "monkey": "g", "empty_password": ""}
    assert clean().plain({"uplink": [told]}) == {
        "uplink": [
            {**dict.fromkeys(told, REMOVED), "name": "e", "monkey": "g", "empty_password": ""}
            | {"site_key": "b"}
        ]
    }


def test_a_short_secret_is_taken_out_as_a_word_only() -> None:
    assert clean("ab1").text("ab1 cab1 ab12 (ab1)") == f"{REMOVED} cab1 ab12 ({REMOVED})"


def test_a_user_in_an_address_is_left_out() -> None:
    assert clean().text("mqtts://me:pw@host:1/x") == f"mqtts://{REMOVED}@host:1/x"


def test_a_token_keeps_its_identity_and_loses_its_number() -> None:
    redactor = clean(tokens=("04A2B3", "a card", ""))
    name = redactor.token("04A2B3")
    assert redactor.text("card 04A2B3, 04A2B34") == f"card {name}, 04A2B34"
    assert redactor.text("held a card") == f"held {redactor.token('a card')}"
    assert redactor.plain({"id_token": {"value": "04A2B3", "type": "ISO14443"}}) == {
        "id_token": {"value": name, "type": "ISO14443"}
    }
    assert redactor.plain({"id_token": "04A2B3"}) == {"id_token": name}
    assert redactor.plain({"id_token": None}) == {"id_token": None}
    assert Redactor((), (), b"other").token("04A2B3") != name


def test_an_unknown_token_in_a_sentence_is_known_by_its_sentence() -> None:
    redactor = clean()
    name = redactor.token("99FF")
    assert redactor.text("id token 99FF is refused") == f"id token {name} is refused"
    assert redactor.text("this id token is blocked") == "this id token is blocked"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"password": "s3cret-1", "username": "TAS-1"}', {"s3cret-1"}),
        ('{"a": [{"api_key": "k"}]}', {"k"}),
        ("just-a-password\n", {"just-a-password"}),
        ("USER=me\nMQTT_PASSWORD='quoted'\n", {"quoted"}),
        (PEM, {"MIGHAgEAMBMGByqGSM49", "AgEGCCqGSM49AwEHBG0w"}),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", set()),
    ],
)
def test_a_file_tells_its_secrets(text: str, found: set[str]) -> None:
    assert secrets_in(text) == found


def test_files_that_a_configuration_names_and_those_beside_it_are_looked_into(
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "ocpp.pw").write_text("ocpp-password")
    folder = tmp_path / "etc"
    folder.mkdir()
    (folder / "agent.toml").write_text("key = 1")
    (folder / "credentials.json").write_bytes(msgspec.json.encode({"password": "mqtt-password"}))
    (folder / "client.key").write_text(PEM)
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    settings = {
        "uplink": {"ocpp": {"password": str(elsewhere / "ocpp.pw"), "key": "client.key"}},
        "boards": [{"password": "in-the-file", "link": {"device": "/dev/null"}}],
    }
    assert secrets_of(folder / "agent.toml", settings) == {
        "ocpp-password",
        "mqtt-password",
        "in-the-file",
        "MIGHAgEAMBMGByqGSM49",
        "AgEGCCqGSM49AwEHBG0w",
    }


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root reads every file; so the test is nobody for a moment."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was == 0:
            os.seteuid(was)


def test_credentials_that_cannot_be_read_are_told_other_files_passed_over() -> None:
    with TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        for name in ("credentials.json", "of-somebody-else"):
            (folder / name).write_text('{"password": "s3cret"}')
            (folder / name).chmod(0)
        config = folder / "agent.toml"
        told = pytest.raises(UnreadableSecretError, match="run this as the agent's user or root")
        with without_privileges(), told:
            secrets_of(config, {})
        (folder / "credentials.json").unlink()
        with without_privileges():
            assert secrets_of(config, {}) == set()
