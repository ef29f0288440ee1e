"""What a release says of itself, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.release import (
    Encoding,
    Kind,
    Release,
    ReleaseError,
    Request,
    Window,
    custom_of,
    director_metadata,
    image_path,
    release_of,
    request_of,
    without_request,
)

SHA, BASE = "ab" * 32, "cd" * 32
FULL = Release(
    kind=Kind.AGENT,
    name="karvon-agent",
    version="0.2.0",
    release_counter=7,
    hw_ids=("linux-aarch64-cp311",),
    raw_sha256=SHA,
    raw_length=1000,
    encoding=Encoding.ZSTD,
)
DELTA = msgspec.structs.replace(FULL, encoding=Encoding.ZSTD_DELTA, base_sha256=BASE)
ASKED = Request(id=UUID(int=1), station="UZ*KRV*1", expires_at=5, window=Window(1, 2))


@pytest.mark.parametrize("release", [FULL, DELTA])
def test_what_is_written_is_read_back(release: Release) -> None:
    custom = custom_of(release, ASKED)
    path = image_path(release)
    assert release_of(path, custom) == release
    assert request_of(path, custom) == ASKED
    assert without_request(custom) == custom_of(release)


def test_the_pages_example_is_understood_completely() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "releases.md").read_text()
    (text,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    said = json.loads(text)
    path = "agent/x.zst"
    assert custom_of(release_of(path, said), request_of(path, said)) == said
    fields = {*Release.__struct_fields__, *Request.__struct_fields__} - {"base_sha256"}
    assert [name for name in fields if f"`{name}`" not in page and f".{name}`" not in page] == []


def test_full_images_and_deltas_lie_side_by_side() -> None:
    assert image_path(FULL) == "agent/karvon-agent-0.2.0-linux-aarch64-cp311.zst"
    assert image_path(DELTA).endswith(f".from-{BASE[:16]}.delta")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "../etc"}, "no name"),
        ({"version": ""}, "no name"),
        ({"hw_ids": []}, "at least one hardware id"),
        ({"raw_sha256": "AB" * 32}, "raw_sha256"),
        ({"base_sha256": BASE}, "base_sha256 belongs to deltas"),
        ({"encoding": "zstd-delta"}, "base_sha256 belongs to deltas"),
        ({"release_counter": 0}, "counter"),
        ({"raw_length": 2**40}, "raw_length"),
        ({"kind": "toaster"}, "not a release"),
        ({"raw_length": "1"}, "not a release"),
        ({"kind": "board"}, "lies below board/"),
    ],
)
def test_what_breaks_the_rules_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(ReleaseError, match=why):
        release_of("agent/x.zst", custom_of(FULL) | change)


@pytest.mark.parametrize("custom", [None, {}, {"request": {}}, {"request": {"id": 1}}, 7])
def test_a_director_that_asks_nothing_is_refused(custom: Any) -> None:
    with pytest.raises(ReleaseError, match="no request"):
        request_of("agent/x.zst", custom)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(JSON)
def test_noise_is_refused_in_one_way_only(noise: Any) -> None:
    with pytest.raises(ReleaseError):
        release_of("agent/x", noise)
    assert without_request(noise) == noise or "request" in noise


def test_a_station_has_one_folder_of_its_own() -> None:
    assert director_metadata("UZ*KRV*1") == "ota/director/UZ=2AKRV=2A1/metadata"
