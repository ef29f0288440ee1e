"""The launcher: always something to start, never a trial once too often. Real slots, real kills."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ota_slots import CRASHES, Controller, image

from edge_agent.updates import archive, launcher, slots
from edge_agent.updates.archive import Entry, ImageError
from edge_agent.updates.launcher import FILES, Failed, Record, choose, pack, read, unpack, write

OLD, NEW, BEFORE = "a" * 64, "b" * 64, "c" * 64
TRIAL = Record(confirmed=OLD, previous=BEFORE, trial=NEW, tries=3, request="r")


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def await_told(controller: Controller, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(controller.heard()) < count:
        assert time.monotonic() < deadline, controller.heard()
        time.sleep(0.01)


# --------------------------------------------------------------------------- the boot record

RECORDS = st.builds(
    Record,
    confirmed=st.sampled_from(["", OLD, NEW]),
    previous=st.sampled_from(["", OLD, BEFORE]),
    trial=st.sampled_from(["", NEW]),
    tries=st.integers(0, 3),
    request=st.text(max_size=5),
    expects=st.dictionaries(st.text(max_size=3), st.booleans(), max_size=2),
    failed=st.none() | st.builds(Failed, st.text(max_size=4), st.text(max_size=4)),
    crashes=st.integers(0, 20),
    boot=st.sampled_from(["", "boot"]),
    counter=st.integers(0, 2**40),
)


@given(RECORDS)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert unpack(pack(record)) == record


@given(st.binary(max_size=200))
def test_noise_is_no_record(noise: bytes) -> None:
    assert unpack(noise) is None


def test_ota_f26_boot_record_cut_at_every_byte_of_a_write(tmp_path: Path) -> None:
    """Whatever is on disk of a write, either record stands whole: the old one or the new."""
    before = write(tmp_path, replace(TRIAL, trial="", tries=0))
    write(tmp_path, TRIAL)
    after = write(tmp_path, replace(TRIAL, tries=2))
    (written,) = [name for name in FILES if unpack((tmp_path / name).read_bytes()) == after]
    whole = (tmp_path / written).read_bytes()
    standing = read_without(tmp_path, written)
    assert standing is not None
    assert standing.tries == 3
    for cut in range(len(whole)):
        (tmp_path / written).write_bytes(whole[:cut])
        assert read(tmp_path) == standing
        again = write(tmp_path, replace(TRIAL, tries=2))
        assert read(tmp_path) == again
        assert read_without(tmp_path, written) == standing
    assert before.counter < standing.counter < after.counter


def read_without(folder: Path, name: str) -> Record | None:
    other = next(each for each in FILES if each != name)
    return unpack((folder / other).read_bytes())


def test_ota_f26_boot_record_flipped_at_every_byte(
    tmp_path: Path, sample_size: Callable[[int, int], int]
) -> None:
    """A rotten byte in either file, or the same in both, leaves a choice that can start."""
    older = write(tmp_path, replace(TRIAL, trial="", tries=0))
    newer = write(tmp_path, TRIAL)
    files = {name: (tmp_path / name).read_bytes() for name in FILES}
    bits = range(sample_size(1, 8))
    for name, other in zip(FILES, reversed(FILES), strict=True):
        for bit, index in itertools.product(bits, range(len(files[name]))):
            damaged = bytearray(files[name])
            damaged[index] ^= 1 << (index + bit) % 8
            (tmp_path / name).write_bytes(damaged)
            assert read(tmp_path) == unpack(files[other])
            (tmp_path / other).write_bytes(damaged)
            found = choose(read(tmp_path), {OLD, NEW}.__contains__, [NEW, OLD], "boot")
            assert found.slot in {OLD, NEW}
            (tmp_path / other).write_bytes(files[other])
        (tmp_path / name).write_bytes(files[name])
    assert read(tmp_path) == newer != older


def test_both_files_of_a_lost_disk_leave_the_factory(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(b"")
    found = choose(read(tmp_path), {"", NEW}.__contains__, [NEW], "boot")
    assert found.slot == ""


@given(
    RECORDS | st.none(),
    st.sets(st.sampled_from(["", OLD, NEW, BEFORE, "d" * 64])),
    st.sampled_from(["", "boot", "other"]),
)
def test_what_can_start_is_always_started(
    record: Record | None, usable: set[str], boot: str
) -> None:
    found = choose(record, usable.__contains__, sorted(usable - {""}), boot)
    assert found.slot in usable or not usable
    if record is not None and record.trial and found.slot == record.trial == found.record.trial:
        assert found.record.tries == record.tries - 1 >= 0


@given(RECORDS, st.lists(st.sampled_from(["boot", "other"]), min_size=1, max_size=12))
def test_a_trial_ends_within_its_tries(record: Record, boots: list[str]) -> None:
    record = replace(record, trial=NEW)
    tried = 0
    for boot in boots:
        found = choose(record, {OLD, NEW, BEFORE, ""}.__contains__, [], boot)
        tried += bool(record.trial) and found.slot == NEW == found.record.trial
        record = found.record
    assert tried <= 3


def test_a_crash_loop_of_what_is_confirmed_goes_back_and_then_to_the_factory() -> None:
    record, started = Record(confirmed=NEW, previous=OLD), []
    for _ in range(12):
        found = choose(record, {OLD, NEW, ""}.__contains__, [], "boot")
        started.append(found.slot)
        record = found.record
    assert started == [NEW] * 5 + [OLD] * 5 + [""] * 2


def test_power_cuts_are_no_crashes() -> None:
    record = Record(confirmed=NEW, previous=OLD)
    for number in range(20):
        found = choose(record, {OLD, NEW}.__contains__, [], f"boot {number}")
        assert found.slot == NEW
        record = found.record


# --------------------------------------------------------------------------- real slots


def test_arguments_reach_the_slot_and_current_shows_it(controller: Controller) -> None:
    slot = controller.install("1.0")
    controller.record(confirmed=slot)
    assert controller.start("agent", "run") == 0
    (told,) = controller.heard()
    assert (told["version"], told["args"], told["slot"]) == ("1.0", ["agent", "run"], slot)
    assert (controller.folder / "current").resolve().name == slot


def test_ota_f29_crash_loop_rolls_back_after_three_tries(controller: Controller) -> None:
    old, new = controller.install("1.0"), controller.install("2.0", CRASHES)
    controller.record(confirmed=old, trial=new, tries=launcher.TRIES, request="r7")
    assert [controller.start() for _ in range(5)] == [9, 9, 9, 0, 0]
    assert controller.versions() == ["2.0", "2.0", "2.0", "1.0", "1.0"]
    assert controller.stands.failed == Failed(new, "it did not confirm itself", "r7")


def test_ota_f31_hang_counts_as_a_try(controller: Controller) -> None:
    """The watchdog kills what hangs: that start is spent, and the next comes after it."""
    old = controller.install("1.0")
    hangs = "if sys.argv[1:2] == ['selftest']: sys.exit(0)\ntell()\nimport time\ntime.sleep(600)\n"
    new = controller.install("2.0", hangs)
    controller.record(confirmed=old, trial=new, tries=launcher.TRIES)
    for count in (1, 2, 3):
        running = controller.popen()
        await_told(controller, count)
        assert controller.stands.tries == launcher.TRIES - count
        running.send_signal(signal.SIGABRT)
        assert running.wait(60) == -signal.SIGABRT
    assert controller.start() == 0
    assert controller.versions() == ["2.0", "2.0", "2.0", "1.0"]


def test_ota_f32_cut_before_confirm_is_still_a_trial(controller: Controller) -> None:
    old, new = controller.install("1.0"), controller.install("2.0")
    controller.record(confirmed=old, trial=new, tries=launcher.TRIES)
    assert controller.start() == 0
    assert (controller.stands.trial, controller.stands.tries) == (new, 2)
    assert controller.stands.confirmed == old


def test_ota_f33_both_slots_bad_starts_the_factory(controller: Controller) -> None:
    controller.factory("0.1")
    old, new = controller.install("1.0"), controller.install("2.0")
    controller.record(confirmed=new, previous=old)
    for slot in (old, new):
        (controller.folder / "slots" / slot / "bin" / "python").unlink()
    assert controller.start() == 0
    assert controller.versions() == ["0.1"]


def test_ota_f34_boot_record_destroyed_starts_what_can_start(controller: Controller) -> None:
    slot = controller.install("1.0")
    controller.record(confirmed=slot)
    for name in FILES:
        (controller.folder / name).write_bytes(os.urandom(100))
    assert controller.start() == 0
    assert controller.versions() == ["1.0"]


def test_nothing_to_start_is_said(controller: Controller, capfd: Any) -> None:
    assert controller.start() == launcher.UNUSABLE
    assert "no slot can be started" in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a disk that can be made read-only")
def test_ota_f34_record_that_cannot_be_written_starts_no_trial(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncounted tries would be endless: what is confirmed starts instead."""
    old, new = controller.install("1.0"), controller.install("2.0")
    record = controller.record(confirmed=old, trial=new, tries=3)

    def refuse(folder: Path, record: Record) -> Record:
        raise OSError(30, "read-only file system")

    monkeypatch.setattr(launcher, "write", refuse)
    wanted = choose(record, lambda slot: launcher.usable(controller.folder, slot), [], "boot")
    assert wanted.slot == new
    assert launcher.settle(controller.folder, wanted).slot == old


def test_ota_f27_symlink_switched_under_a_running_process_mixes_nothing(
    controller: Controller,
) -> None:
    late = (
        "if sys.argv[1:2] == ['selftest']: sys.exit(0)\n"
        "tell()\nimport time\n"
        "while not os.path.exists(os.environ['TOLD'] + '.go'): time.sleep(0.01)\n"
        "import late\ntell(late=late.SAYS)\n"
    )
    old = controller.install("1.0", late, **{"late.py": "SAYS = 'old'\n"})
    new = controller.install("2.0", late, **{"late.py": "SAYS = 'new'\n"})
    controller.record(confirmed=old)
    running = controller.popen()
    await_told(controller, 1)
    launcher.point(controller.folder, new)
    controller.told.with_name("told.go").touch()
    assert running.wait(60) == 0
    assert controller.heard()[-1]["late"] == "old"


def test_ota_f28_stale_bytecode_is_impossible(controller: Controller) -> None:
    """Equal size and time deceive nobody; what an abandoned attempt left is wiped."""
    asks = "if sys.argv[1:2] == ['selftest']: sys.exit(0)\nimport word\ntell(word=word.IS)\n"
    old = controller.install("1.0", asks, **{"word.py": "IS = 'old'\n"})
    draft = controller.folder / "slots" / slots.NEW
    packages = slots.packages_of(controller.folder / "slots" / old)
    shutil.copytree(controller.folder / "slots" / old, draft, symlinks=True)
    new = controller.install("2.0", asks, **{"word.py": "IS = 'new'\n"})
    word = slots.packages_of(controller.folder / "slots" / new) / "word.py"
    os.utime(word, ns=(0, 0))
    os.utime(packages / "word.py", ns=(0, 0))
    for slot in (old, new):
        controller.record(confirmed=slot)
        assert controller.start() == 0
    assert [one["word"] for one in controller.heard()] == ["old", "new"]
    word.write_text("IS = 'odd'\n")
    os.utime(word, ns=(0, 0))
    controller.record(confirmed=new)
    assert controller.start() == 0
    assert controller.heard()[-1]["word"] == "odd"


# --------------------------------------------------------------------------- making slots


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([Entry("site-packages/x.py", b"")], "no release.json"),
        ([Entry("bin/python", b"#!")], "no place"),
        ([Entry("site-packages/../x", b"")], "no place"),
        ([Entry("/site-packages/x", b"")], "no place"),
        ([Entry("site-packages/__pycache__/x.pyc", b"")], "no place"),
        ([Entry("release.json", b"{}")], "release.json"),
        ([Entry("release.json", b'{"name":"a","version":"1","python":"cp27"}')], "cp27"),
    ],
)
def test_an_unfit_image_makes_no_slot(
    controller: Controller, entries: list[Entry], why: str
) -> None:
    with pytest.raises(ImageError, match=why):
        slots.prepare(controller.folder, archive.pack(entries), selftest=[])
    assert launcher.slots(controller.folder) == []


def test_an_environment_that_fails_its_selftest_makes_no_slot(controller: Controller) -> None:
    with pytest.raises(ImageError, match="self-test: no such thing"):
        controller.install("1.0", "sys.exit('no such thing')\n")
    assert not (controller.folder / "slots" / slots.NEW).exists()


def test_a_slot_gives_back_the_image_it_came_from(controller: Controller) -> None:
    made = image("1.0", **{"more/data.bin": "\x00\x01", "z.py": "Z = 1\n"})
    name = slots.prepare(controller.folder, made, selftest=["selftest"])
    assert slots.image_of(controller.folder, name) == made
    assert archive.sha256(made) == name


def test_slots_that_any_record_names_are_kept(controller: Controller) -> None:
    names = [controller.install(f"{number}.0") for number in range(4)]
    controller.record(confirmed=names[0])
    record = controller.record(confirmed=names[1], previous="")
    assert slots.collect(controller.folder, record, names[2]) == [names[3]]
    assert launcher.slots(controller.folder) == sorted(names[:3])


def test_while_a_boot_file_cannot_be_read_every_slot_is_kept(controller: Controller) -> None:
    names = [controller.install(f"{number}.0") for number in range(2)]
    record = controller.record(confirmed=names[0])
    for name in FILES:
        place = controller.folder / name
        place.unlink(missing_ok=True)
        place.mkdir()  # reading it fails, as on a bad sector
    with pytest.raises(OSError, match="boot"):
        slots.collect(controller.folder, record, names[0])
    assert launcher.slots(controller.folder) == sorted(names)
