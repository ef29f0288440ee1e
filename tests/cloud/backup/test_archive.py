"""The backup's file gives back what was put in, or says that it cannot."""

from __future__ import annotations

import io
import stat
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.kernel.backup.archive import (
    FORMAT,
    HEAD,
    BadBackup,
    Head,
    Manifest,
    Reader,
    Sequence,
    Table,
    Writer,
)

AT = datetime(2026, 5, 1, 12, tzinfo=UTC)
Contents = dict[str, list[bytes]]
streams = st.dictionaries(
    st.from_regex(r"[a-z]{1,9}\.[a-z_]{1,9}", fullmatch=True),
    st.lists(st.binary(max_size=60), max_size=6),
    max_size=4,
)


def packed(contents: Contents, files: dict[str, bytes] | None = None) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, piece=32)
    for name, content in (files or {}).items():
        writer.file(name, content)
    tables = []
    for name, blocks in contents.items():
        into = writer.table(name)
        for block in blocks:
            into.write(block)
        digest = into.close()
        tables.append(Table(name, ("a",), "binary", len(blocks), into.bytes, digest))
    writer.seal(Manifest(AT, ("kernel_0001",), tuple(tables), (Sequence("a.b", None),)))
    return file.getvalue()


def unpacked(archive: bytes) -> tuple[dict[str, bytes], dict[str, bytes]]:
    reader = Reader(io.BytesIO(archive), "test.tar")
    tables = {table.name: b"".join(reader.blocks(table)) for table in reader.manifest.tables}
    return tables, dict(reader.files())


@settings(max_examples=60, deadline=None)
@given(streams)
def test_what_goes_in_comes_out(contents: Contents) -> None:
    files = {"broker/tls/ca.key": b"secret", "broker/port": b"8883\n"}
    whole = {name: b"".join(blocks) for name, blocks in contents.items()}
    assert unpacked(packed(contents, files)) == (whole, files)


@settings(max_examples=150, deadline=None)
@given(streams, st.data())
def test_a_damaged_file_is_noticed(contents: Contents, data: st.DataObject) -> None:
    archive = packed(contents, {"broker/port": b"8883\n"})
    at = data.draw(st.integers(0, len(archive) - 1))
    flipped = bytearray(archive)
    flipped[at] ^= data.draw(st.integers(1, 255))
    try:
        found = unpacked(bytes(flipped))
    except BadBackup:
        return
    assert found == unpacked(archive), "only padding may change without being noticed"


@settings(max_examples=80, deadline=None)
@given(streams, st.data())
def test_a_file_that_ends_early_is_noticed(contents: Contents, data: st.DataObject) -> None:
    archive = packed(contents)
    seal = archive.index(b"manifest.sha256")
    with pytest.raises(BadBackup):
        unpacked(archive[: data.draw(st.integers(0, seal + 512))])


def test_any_tar_and_gzip_can_read_it(tmp_path: Path) -> None:
    archive = packed({"users.person": [b"x" * 50, b"y" * 50]})
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = tar.getnames()
        assert names[0] == HEAD
        assert [name for name in names if name.startswith("data/")] == [
            f"data/users.person/{number:06}.gz" for number in range(1, 5)
        ]
        assert {member.mode for member in tar} == {0o600}


def test_a_newer_format_is_refused_with_a_way_out() -> None:
    file = io.BytesIO()
    with tarfile.TarFile(fileobj=file, mode="w") as tar:
        content = msgspec.json.encode(Head(FORMAT + 1))
        member = tarfile.TarInfo(HEAD)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    with pytest.raises(BadBackup, match="newer one"):
        Reader(io.BytesIO(file.getvalue()), "test.tar")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "broker/../../evil"])
def test_no_file_leaves_its_folder(name: str) -> None:
    with pytest.raises(BadBackup, match="outside"):
        unpacked(packed({}, {name: b"x"}))


def test_the_file_gets_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "one.tar"

    def fail() -> None:
        with Writer.to(path) as writer:
            writer.file("broker/port", b"1")
            assert not path.exists()
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert list(tmp_path.iterdir()) == []
    with Writer.to(path) as writer:
        writer.seal(Manifest(AT, (), (), ()))
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
