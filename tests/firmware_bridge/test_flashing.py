"""The plan on a board of each kind: cut anywhere, refused, mismatched; in the end a board runs."""

from pathlib import Path

import pytest
from rigs import HW_ID, ModbusRig, Rig, SmpRig, Stm32Rig

from firmware_bridge.boards import Boards
from firmware_bridge.flashing import Progress, Result
from firmware_bridge.journal import ImageStore, Journal, Phase, forget_unneeded
from firmware_bridge.loader import (
    FirmwareImage,
    LineError,
    LoaderSilentError,
    ProtectedError,
    RefusedError,
    StoreError,
)

KINDS = [
    pytest.param(Stm32Rig, id="stm32"),
    pytest.param(ModbusRig, id="modbus"),
    pytest.param(SmpRig, id="smp"),
]


@pytest.fixture(params=KINDS)
def rig(request) -> Rig:
    return request.param()


def settled(rig: Rig, folder: Path, version: str = "1.0.0", **settings):
    """A board that runs `version`, put there by the plan."""
    flasher = rig.flasher(folder, hw_id=HW_ID, **settings)
    outcome = flasher.install(rig.image(version))
    assert outcome.result is Result.INSTALLED, outcome
    flasher.hw_id = None
    return flasher


def runs(rig: Rig) -> str | None:
    seen = rig.loader.version()
    return None if seen is None else seen.version


class Killed(BaseException):
    """The host's process ends here."""


def test_a_board_gets_the_next_version(rig: Rig, tmp_path: Path) -> None:
    flasher = settled(rig, tmp_path)
    told: list[Progress] = []
    flasher.watch = told.append
    outcome = flasher.install(rig.image("1.1.0"))
    assert (outcome.result, outcome.version, outcome.reason) == (Result.INSTALLED, "1.1.0", "")
    assert runs(rig) == "1.1.0"
    entry = flasher.journal.load()
    assert entry is not None
    assert (entry.phase, entry.previous) == (Phase.INSTALLED, rig.image("1.0.0").sha256)
    assert told[-1].done == told[-1].total
    assert [one.done for one in told if one.phase is Phase.WRITE] == sorted(
        one.done for one in told if one.phase is Phase.WRITE
    )
    assert flasher.recover() is None, "nothing is open"


def test_ota_f40_another_board_is_refused_before_erasing(rig: Rig, tmp_path: Path) -> None:
    flasher = settled(rig, tmp_path)
    erased = rig.erased()
    with pytest.raises(RefusedError, match=f"is a {HW_ID} and 2.0.0 is made for KPB-44"):
        flasher.install(rig.image("2.0.0", hw_id="KPB-44"))
    assert rig.erased() == erased
    assert runs(rig) == "1.0.0"
    assert flasher.recover() is None, "nothing was begun"


def test_ota_f40_a_loader_that_does_not_know_its_board_needs_a_person(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = rig.flasher(tmp_path)
    with pytest.raises(RefusedError, match="vouch for it with --hw-id"):
        flasher.install(rig.image("1.0.0"))
    assert rig.erased() == 0


def test_ota_f40_another_chip_is_refused_before_erasing(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = settled(rig, tmp_path)
    erased = rig.erased()
    rig.chip.pid = 0x413
    with pytest.raises(RefusedError, match=r"has the chip 0x413 .* made for 0x410"):
        flasher.install(rig.image("1.1.0"))
    assert rig.erased() == erased
    assert runs(rig) == "1.0.0", "the application is started again"
    assert flasher.recover() is None, "nothing was begun"


def test_ota_f40_an_image_made_for_nothing_is_refused(rig: Rig, tmp_path: Path) -> None:
    flasher = settled(rig, tmp_path)
    with pytest.raises(RefusedError, match="does not say what hardware it is made for"):
        flasher.install(FirmwareImage(octets=b"\0" * 600, version="1"))


def test_ota_f42_the_board_is_cut_at_every_block(tmp_path: Path, record_property) -> None:
    rig = Stm32Rig()
    blocks = rig.loader_blocks(rig.image("1.1.0"))
    for block in range(blocks):
        folder = tmp_path / str(block)
        rig = Stm32Rig()
        flasher = settled(rig, folder)
        rig.faults.cut_at_block = len(rig.chip.programmed) + block
        with pytest.raises(LoaderSilentError):
            flasher.install(rig.image("1.1.0"))
        assert_reflashes(rig, folder, sealed=block == blocks - 1)
    record_property("cuts of the board's power, at each block", blocks)


def test_ota_f42_the_board_is_cut_at_every_erased_page(tmp_path: Path) -> None:
    for page in range(1, 4):
        folder = tmp_path / str(page)
        rig = Stm32Rig()
        flasher = settled(rig, folder)
        rig.faults.cut_at_erase = len(rig.chip.erased) + page
        with pytest.raises(LoaderSilentError):
            flasher.install(rig.image("1.1.0"))
        assert_reflashes(rig, folder, sealed=False)


def assert_reflashes(rig: Stm32Rig, folder: Path, *, sealed: bool) -> None:
    """After a cut: no application, the loader answers by itself, and the plan is taken up."""
    rig.power_on()
    assert rig.loader.version() is None
    if not sealed:
        assert rig.chip.in_loader, "without BOOT0 only a blank first block keeps it there"
    rig.connect()
    outcome = rig.flasher(folder).recover()
    assert outcome is not None
    assert (outcome.result, runs(rig)) == (Result.INSTALLED, "1.1.0")


def test_ota_f42_the_host_is_killed_at_every_step(
    rig: Rig, tmp_path: Path, record_property
) -> None:
    """At each block of writing and verifying, and before and after each note in the journal."""
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        rig = type(rig)()
        flasher = settled(rig, folder)
        left = [steps]

        def step(*_: object, left: list[int] = left) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1

        flasher.watch = step
        flasher.journal = KillingJournal(flasher.journal.path, step)
        try:
            flasher.install(rig.image("1.1.0"))
        except Killed:
            rig.cut()
            rig.power_on()
            again = rig.flasher(folder)
            again.recover() or again.install(rig.image("1.1.0"))
        assert runs(rig) == "1.1.0", steps
        entry = again.journal.load() if left[0] == 0 else flasher.journal.load()
        assert entry is not None
        assert (entry.phase, entry.image) == (Phase.INSTALLED, rig.image("1.1.0").sha256)
        if left[0] > 0:
            break
        steps += 1
    assert steps > 25
    record_property("kills of the host, at each step", steps)


class KillingJournal(Journal):
    def __init__(self, path: Path, step) -> None:
        super().__init__(path)
        self._step = step

    def store(self, entry) -> None:
        self._step()
        super().store(entry)
        self._step()


def test_ota_f43_a_mismatch_is_tried_three_times_then_the_previous_image(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = settled(rig, tmp_path)
    blocks = rig.loader_blocks(rig.image("1.1.0"))
    rig.faults.silent_writes = 3 * (blocks - 1)
    before = len(rig.chip.erased)
    outcome = flasher.install(rig.image("1.1.0"))
    assert outcome.result is Result.PREVIOUS
    assert outcome.version == runs(rig) == "1.0.0"
    assert outcome.reason.startswith("3 tries failed, at last: the flash holds ff")
    assert len(rig.chip.erased) - before == 4 * 3, "three tries and the way back, three pages each"


def test_ota_f43_nothing_can_be_written_any_more(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = settled(rig, tmp_path)
    rig.faults.silent_writes = 10_000
    outcome = flasher.install(rig.image("1.1.0"))
    assert (outcome.result, outcome.version) == (Result.FAULTED, None)
    assert "then the previous image: 3 tries failed" in outcome.reason
    entry = flasher.journal.load()
    assert entry is not None
    assert entry.phase is Phase.FAULTED
    rig.faults.silent_writes = 0
    again = rig.flasher(tmp_path).recover()
    assert again is not None
    assert (again.result, runs(rig)) == (Result.INSTALLED, "1.1.0"), "a technician tries again"


def test_without_a_previous_image_a_board_that_cannot_be_written_is_faulted(
    tmp_path: Path,
) -> None:
    rig = Stm32Rig()
    rig.faults.silent_writes = 10_000
    outcome = rig.flasher(tmp_path, hw_id=HW_ID).install(rig.image("1.0.0"))
    assert outcome.result is Result.FAULTED


def test_a_previous_image_can_be_given_at_the_first_time(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = rig.flasher(tmp_path, hw_id=HW_ID)
    outcome = flasher.install(rig.image("1.1.0", healthy=False), previous=rig.image("1.0.0"))
    assert (outcome.result, runs(rig)) == (Result.PREVIOUS, "1.0.0")


def test_ota_f44_a_protected_board_is_left_alone(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = settled(rig, tmp_path)
    rig.chip.protected = True
    erased = rig.erased()
    with pytest.raises(ProtectedError, match="never taken off from here"):
        flasher.install(rig.image("1.1.0"))
    assert rig.chip.protected
    assert rig.erased() == erased


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"healthy": False}, "its self-test fails"),
        ({"says": "9.9.9"}, "9.9.9 answers"),
        ({"protocol": 3}, "speaks version 3 of the board's protocol, and this agent speaks 1, 2"),
    ],
)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_ota_f45_what_boots_and_is_wrong_goes_back_at_once(
    kind: type[Rig], tmp_path: Path, said: dict, reason: str
) -> None:
    rig = kind()
    flasher = settled(rig, tmp_path, protocols=frozenset({1, 2}))
    outcome = flasher.install(rig.image("1.1.0", **said))
    assert (outcome.result, runs(rig)) == (Result.PREVIOUS, "1.0.0")
    assert reason in outcome.reason
    entry = flasher.journal.load()
    assert entry is not None
    assert (entry.phase, entry.image) == (Phase.INSTALLED, rig.image("1.0.0").sha256)


def test_ota_f46_the_board_follows_an_agent_that_was_rolled_back(rig: Rig, tmp_path: Path) -> None:
    flasher = settled(rig, tmp_path)
    flasher.install(rig.image("1.1.0"))
    heard: list[bool] = []
    boards = Boards(boards={"1": flasher}, available=heard.append)
    outcomes = boards.reconcile(rig.image("1.0.0"))
    assert outcomes["1"].result is Result.INSTALLED
    assert runs(rig) == "1.0.0"
    assert heard == [False, True]


def three(tmp_path: Path, heard: list[bool]) -> tuple[list[Stm32Rig], Boards]:
    rigs = [Stm32Rig() for _ in range(3)]
    flashers = {str(i): settled(rig, tmp_path / str(i)) for i, rig in enumerate(rigs)}
    return rigs, Boards(boards=flashers, available=heard.append)


def test_ota_f47_no_charging_until_all_boards_have_one_version(tmp_path: Path) -> None:
    heard: list[bool] = []
    rigs, boards = three(tmp_path, heard)
    seen: list[tuple[list[bool], bool]] = []
    for flasher in boards.boards.values():
        flasher.watch = lambda _: seen.append((list(heard), boards.uniform()))
    outcomes = boards.install(rigs[0].image("1.1.0"))
    assert {one.result for one in outcomes.values()} == {Result.INSTALLED}
    assert heard == [False, True]
    assert all(told == ([False], False) for told in seen)
    assert [runs(rig) for rig in rigs] == ["1.1.0"] * 3


def test_ota_f47_if_one_board_cannot_the_others_go_back(tmp_path: Path) -> None:
    heard: list[bool] = []
    rigs, boards = three(tmp_path, heard)
    rigs[1].faults.silent_writes = 3 * 11
    outcomes = boards.install(rigs[0].image("1.1.0"))
    assert [runs(rig) for rig in rigs] == ["1.0.0"] * 3
    assert [outcomes[name].result for name in outcomes] == [Result.PREVIOUS] * 2
    assert outcomes["0"].reason.startswith("board 1 could not be brought to it: 3 tries failed")
    assert heard == [False, True]


def test_ota_f47_a_board_that_stays_behind_keeps_the_charger_unavailable(tmp_path: Path) -> None:
    heard: list[bool] = []
    rigs, boards = three(tmp_path, heard)
    rigs[2].faults.silent_writes = 100_000
    outcomes = boards.install(rigs[0].image("1.1.0"))
    assert outcomes["2"].result is Result.FAULTED
    assert heard == [False, False]


def test_ota_f48_a_swapped_board_gets_what_its_neighbours_have(tmp_path: Path) -> None:
    heard: list[bool] = []
    rigs, boards = three(tmp_path, heard)
    swapped = Stm32Rig()
    settled(swapped, tmp_path / "elsewhere", "0.9.0")
    boards.boards["1"].loader = swapped.loader
    assert not boards.uniform()
    untouched = rigs[0].erased()
    outcomes = boards.reconcile(rigs[0].image("1.0.0"))
    assert list(outcomes) == ["1"]
    assert runs(swapped) == "1.0.0"
    assert rigs[0].erased() == untouched
    assert heard == [False, True]


def test_ota_f48_a_swapped_board_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    heard: list[bool] = []
    rigs, boards = three(tmp_path, heard)
    other = Stm32Rig()
    other.flasher(tmp_path / "elsewhere", hw_id="KPB-44").install(
        other.image("1.5.0", hw_id="KPB-44")
    )
    boards.boards["1"].loader = other.loader
    erased = other.erased()
    outcomes = boards.reconcile(rigs[0].image("1.0.0"))
    assert "is a KPB-44" in outcomes["1"].reason
    assert other.erased() == erased
    assert heard == [False, False]


def test_a_line_that_is_gone_keeps_the_charger_unavailable(tmp_path: Path) -> None:
    heard: list[bool] = []
    rigs, boards = three(tmp_path, heard)

    def gone() -> None:
        raise LineError("it went away")

    boards.boards["1"].loader.version = gone  # type: ignore[method-assign]
    outcomes = boards.reconcile(rigs[0].image("1.0.0"))
    assert (outcomes["1"].result, outcomes["1"].reason) == (Result.FAULTED, "it went away")
    assert heard == [False, False]


def test_what_was_cut_is_taken_up_at_the_agents_start(tmp_path: Path) -> None:
    heard: list[bool] = []
    rigs, boards = three(tmp_path, heard)
    rigs[1].faults.cut_at_block = len(rigs[1].chip.programmed) + 4
    outcomes = boards.install(rigs[0].image("1.1.0"))
    assert outcomes["1"].result is Result.FAULTED
    assert heard == [False, False]
    rigs[1].power_on()
    boards.reconcile(rigs[0].image("1.0.0"))
    assert [runs(rig) for rig in rigs] == ["1.0.0"] * 3
    assert heard[-1]


def test_a_journal_that_cannot_be_understood_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "board.json").write_text("{")
    with pytest.raises(StoreError, match="Move it away"):
        Journal(tmp_path / "board.json").load()


def test_an_image_that_was_damaged_on_the_disk_is_never_used(tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    image = Stm32Rig().image("1.0.0")
    store.keep(image)
    assert store.get(image.sha256) == image
    file = tmp_path / f"{image.sha256}.bin"
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(StoreError, match="is damaged"):
        store.get(image.sha256)
    store.keep(image)
    assert store.get(image.sha256) == image, "given again, it is written again"
    store.forget_others({image.sha256})
    assert store.get(image.sha256) == image
    store.forget_others(set())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing_stops_the_plan_before_erasing(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = settled(rig, tmp_path)
    erased = rig.erased()
    (tmp_path / "file").write_text("")
    flasher.journal = Journal(tmp_path / "file" / "board.json")
    with pytest.raises(StoreError, match="cannot use"):
        flasher.install(rig.image("1.1.0"))
    assert rig.erased() == erased


class FullDisk(Journal):
    """Takes so many notes, and then no more."""

    def __init__(self, path: Path, notes: int) -> None:
        super().__init__(path)
        self._left = notes

    def store(self, entry) -> None:
        if self._left == 0:
            raise StoreError("the disk is full")
        self._left -= 1
        super().store(entry)


def test_a_disk_that_is_full_in_the_middle_leaves_no_half_image(rig: Rig, tmp_path: Path) -> None:
    flasher = settled(rig, tmp_path)
    flasher.journal = FullDisk(tmp_path / "board.json", 1)
    with pytest.raises(StoreError, match="the disk is full"):
        flasher.install(rig.image("1.1.0"))
    assert runs(rig) == "1.1.0"
    again = rig.flasher(tmp_path).recover()
    assert again is not None
    assert (again.result, runs(rig)) == (Result.INSTALLED, "1.1.0")


def test_images_that_no_board_needs_are_removed(tmp_path: Path) -> None:
    rig = Stm32Rig()
    flasher = settled(rig, tmp_path)
    for version in ("1.1.0", "1.2.0", "1.3.0"):
        flasher.install(rig.image(version))
    boards = Boards(boards={"1": flasher}, available=lambda _: None)
    boards.install(rig.image("1.4.0"))
    kept = {path.stem for path in (tmp_path / "images").iterdir()}
    assert kept == {rig.image(version).sha256 for version in ("1.3.0", "1.4.0")}
    (tmp_path / "other.json").write_text("{")
    flasher.images.keep(rig.image("1.5.0"))
    forget_unneeded([flasher.journal, Journal(tmp_path / "other.json")], flasher.images)
    assert len(list((tmp_path / "images").iterdir())) == 6, "nobody knows what the other needs"
