"""Stations' passwords: every form in which a key is sent, and what it costs to verify."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.communication import passwords as module
from cloud.communication.passwords import Form, Match, Passwords, chosen, generate, keep

PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=40)


@pytest.fixture
def passwords() -> Iterator[Passwords]:
    made = Passwords()
    yield made
    made.close()


def test_a_generated_password_fits_every_version() -> None:
    one, other = generate(), generate()
    assert one != other
    assert len(one) == 40
    assert len(bytes.fromhex(one)) == 20


@pytest.mark.parametrize("generated", [True, False])
async def test_a_key_of_hex_digits_is_known_in_every_form(
    passwords: Passwords, *, generated: bool
) -> None:
    key = "00FFab" + generate()[:34]
    stored = [keep(key, generated=generated)]
    assert chosen(stored[0]) is not generated
    for sent, form in (
        (key.encode(), Form.TEXT),
        (key.upper().encode(), Form.TEXT),
        (bytes.fromhex(key), Form.BYTES),
    ):
        assert await passwords.verify(sent, stored) == Match(0, form)
        assert passwords.at_once(sent, stored) == Match(0, form)
    for wrong in (b"", key[:-2].encode(), bytes.fromhex(key)[:-1], b"\xff" * 20):
        assert await passwords.verify(wrong, stored) is None


@given(PRINTABLE, st.binary(max_size=70))
def test_only_the_key_in_one_of_its_forms_is_right(key: str, other: bytes) -> None:
    passwords = Passwords()
    stored = [keep(key, generated=True)]
    forms = {key.encode(): Form.TEXT, key.encode().hex().encode(): Form.HEX}
    for sent, form in forms.items():
        match = passwords.at_once(sent, stored)
        assert match is not None
        assert match.form is form or module._HEX.fullmatch(key.encode())
    if other.lower() not in {sent.lower() for sent in forms} and other.hex() != key.lower():
        assert passwords.at_once(other, stored) is None
    passwords.close()


async def test_two_are_right_while_a_change_is_under_way(passwords: Passwords) -> None:
    old, new = "the old password", "the new password"
    stored = [keep(new, generated=False), keep(old, generated=False)]
    assert await passwords.verify(new.encode(), stored) == Match(0, Form.TEXT)
    assert await passwords.verify(old.encode(), stored) == Match(1, Form.TEXT)
    assert await passwords.verify(old.encode(), stored[:1]) is None


async def test_a_reconnect_costs_nothing_and_a_change_is_seen_at_once(
    passwords: Passwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    word = "a chosen password"
    stored = [keep(word, generated=False)]
    assert await passwords.verify(word.encode(), stored)
    monkeypatch.setattr(module, "_form", lambda *_: pytest.fail("hashed again"))
    assert await passwords.verify(word.encode(), stored)
    monkeypatch.undo()
    again = [keep(word, generated=False)]
    assert passwords.at_once(word.encode(), again) is None


async def test_memory_is_bounded(passwords: Passwords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    for number in range(10):
        word = f"password number {number}"
        assert await passwords.verify(word.encode(), [keep(word, generated=True)])
    assert len(passwords._known) == 3


async def test_hashing_leaves_the_loop_free(passwords: Passwords) -> None:
    stored = [keep("a chosen password", generated=False)]
    guesses = [passwords.verify(b"guess %d" % number, stored) for number in range(20)]
    turns, gathered = 0, asyncio.gather(*guesses)
    while not gathered.done():
        await asyncio.sleep(0)
        turns += 1
    assert set(await gathered) == {None}
    assert turns > len(guesses), "each hash held the loop"


def test_what_is_stored_does_not_hold_the_password() -> None:
    for generated in (True, False):
        word = generate()
        stored = keep(word, generated=generated)
        assert word not in stored
        assert stored != keep(word, generated=generated)
