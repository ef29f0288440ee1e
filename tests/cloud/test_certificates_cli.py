"""An authority of one's own, its servers' certificates, and the way to the next authority."""

from __future__ import annotations

import json
import ssl
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from cryptography import x509
from typer.testing import CliRunner

from cloud.certificates_cli import app


def run(*arguments: object, code: int = 0) -> Any:
    result: Result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout) if code == 0 else result.output


def trusts(folder: Path, trust: bytes) -> bool:
    """Whether a client with these authorities takes the server's certificate, in a handshake."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    client = ssl.create_default_context(cadata=trust.decode())
    pipes = [ssl.MemoryBIO() for _ in range(2)]
    here = client.wrap_bio(pipes[0], pipes[1], server_hostname="cloud.example")
    there = server.wrap_bio(pipes[1], pipes[0], server_side=True)
    done = set()
    while len(done) < 2:
        for name, side in (("client", here), ("server", there)):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
            done.add(name)
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert run("ensure", tmp_path / "tls", "--name", "cloud.example")["changed"]
    return tmp_path / "tls"


def test_what_is_good_is_left_alone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    assert not run("ensure", folder, "--name", "cloud.example")["changed"]
    assert {path.name: path.read_bytes() for path in folder.glob("*.*")} == before
    assert trusts(folder, before["trust.pem"])
    assert stat.S_IMODE((folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "trust.pem").stat().st_mode) == 0o644


def test_another_name_or_a_wish_renews_under_the_same_authority(folder: Path) -> None:
    trust, first = (folder / "trust.pem").read_bytes(), (folder / "server.pem").read_bytes()
    assert run("ensure", folder, "--name", "cloud.example", "--renew")["changed"]
    assert (folder / "server.pem").read_bytes() != first
    assert trusts(folder, trust)
    assert run("ensure", folder, "--name", "cloud.example", "--name", "192.0.2.1")["changed"]
    names = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    alternative = names.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert alternative.value.get_values_for_type(x509.DNSName) == ["localhost", "cloud.example"]
    assert (folder / "trust.pem").read_bytes() == trust


def test_who_has_the_announced_trust_is_never_locked_out(folder: Path) -> None:
    """At each step a client with the trust of that step gets in; every step may be repeated."""
    old = (folder / "trust.pem").read_bytes()
    for expected in (True, False):
        assert run("announce", folder)["changed"] is expected
        both = (folder / "trust.pem").read_bytes()
        assert trusts(folder, old)
        assert trusts(folder, both)
    for expected in (True, False):
        assert run("switch", folder, "--name", "cloud.example")["changed"] is expected
        assert trusts(folder, both)
        assert not trusts(folder, old)
        assert (folder / "trust.pem").read_bytes() == both
    for expected in (True, False):
        assert run("forget", folder)["changed"] is expected
        new = (folder / "trust.pem").read_bytes()
        assert trusts(folder, new)
        assert new in both
        assert old not in new


def test_a_switch_that_was_ended_halfway_goes_on(folder: Path) -> None:
    old = (folder / "trust.pem").read_bytes()
    run("announce", folder)
    both = (folder / "trust.pem").read_bytes()
    (folder / "old-ca.pem").write_bytes(old)
    (folder / "next" / "ca.key").replace(folder / "ca.key")
    assert run("switch", folder, "--name", "cloud.example")["changed"]
    assert (folder / "trust.pem").read_bytes() == both
    assert trusts(folder, both.removeprefix(old))


def test_a_second_rotation_keeps_the_authority_before_it(folder: Path) -> None:
    for _ in range(2):
        before = (folder / "ca.pem").read_bytes()
        run("announce", folder)
        run("switch", folder, "--name", "cloud.example")
    assert (folder / "old-ca.pem").read_bytes() == before
    assert (folder / "trust.pem").read_bytes() == before + (folder / "ca.pem").read_bytes()


def test_a_step_that_has_no_step_before_it_is_refused(tmp_path: Path, folder: Path) -> None:
    assert "certificates ensure" in run("announce", tmp_path / "none", code=1)
    assert "certificates announce" in run("switch", folder, "--name", "cloud.example", code=1)
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "mend what is there" in run("ensure", blocked, "--name", "cloud.example", code=3)
