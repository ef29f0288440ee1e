"""`karvon bridge` on boards behind pseudo terminals: what it does, says, and ends with."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_bridge.simulator.faults import Faults
from firmware_bridge.simulator.flash import make_image
from firmware_bridge.simulator.lines import PtyLine
from firmware_bridge.simulator.modbus import ModbusBoard, TerraAc
from firmware_bridge.simulator.smp import SmpBoard, make_signed
from firmware_bridge.simulator.stm32 import Stm32
from karvon.cli import main

SIZE = 3000
F1 = {"pid": 0x410, "pages": (1024,) * 128, "extended": False}


class Cli:
    """Runs it in this process; the exit code, stdout and stderr of each call."""

    def __init__(self, folder: Path, capsys) -> None:
        self.folder, self._capsys = folder, capsys
        self.device = ""

    def __call__(self, verb: str, *args: str, state: bool = True) -> tuple[int, str, str]:
        keep = ["--state", str(self.folder / "state")] if state else []
        with pytest.raises(SystemExit) as ended:
            main(["bridge", verb, "--device", self.device, *keep, *args])
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def file(self, octets: bytes, name: str = "image.bin") -> str:
        path = self.folder / name
        path.write_bytes(octets)
        return str(path)


@pytest.fixture
def cli(tmp_path: Path, capsys) -> Cli:
    return Cli(tmp_path, capsys)


@pytest.fixture
def stm32(cli: Cli) -> Iterator[Stm32]:
    board = Stm32(**F1)
    with PtyLine(board) as line:
        cli.device = line.path
        yield board


def test_probe_tells_the_chip(cli: Cli, stm32: Stm32) -> None:
    code, out, _ = cli("probe", "--json", state=False)
    assert code == 0
    told = json.loads(out)
    assert (told["loader"], told["chip"]) == ("STM32 ROM loader 3.1", "0x410")
    assert told["chip_name"] == "STM32F10x medium density"
    assert told["version"] is None
    code, out, _ = cli("probe", state=False)
    assert code == 0
    assert "chip        0x410" in out
    assert 0x31 not in stm32.commands
    assert stm32.erased == []


def test_flash_then_verify_then_nothing_to_recover(cli: Cli, stm32: Stm32) -> None:
    octets = make_image(SIZE, "1.4.0")
    file = cli.file(octets)
    code, out, err = cli("flash", file, "--version", "1.4.0", "--chip", "0x410")
    assert (code, err) == (0, "")
    assert out.startswith("the board has 1.4.0 and was compared; nobody here can ask it")
    assert stm32.flash.octets[:SIZE] == octets
    assert stm32.running() is not None
    stm32.enter_loader()
    code, out, _ = cli("verify", file, state=False)
    assert (code, out) == (0, f"the board holds image.bin ({SIZE} bytes)\n")
    code, out, _ = cli("recover", "--json")
    assert (code, json.loads(out)["result"]) == (0, "nothing")


def test_verify_finds_a_difference(cli: Cli, stm32: Stm32) -> None:
    octets = make_image(SIZE, "1.4.0")
    stm32.flash.octets[:SIZE] = octets[:-1] + b"\1"
    code, out, err = cli("verify", cli.file(octets), "--json", state=False)
    assert code == 1
    assert "the flash holds 01 at 0x08000bb7" in json.loads(out)["reason"]
    assert err.startswith("karvon bridge: the flash holds 01")


def test_refused_images_leave_the_board_as_it_is(cli: Cli, stm32: Stm32) -> None:
    file = cli.file(make_image(SIZE, "1.4.0"))
    for args, code, why in (
        (["--version", "1.4.0", "--chip", "0x413"], 1, "made for 0x413; nothing was erased"),
        (["--version", "1.4.0", "--for", "KPB-22"], 1, "vouch for it with --hw-id"),
        (
            ["--version", "1.4.0", "--for", "KPB-22", "--hw-id", "KPB-44"],
            1,
            "is a KPB-44 and 1.4.0 is made for KPB-22",
        ),
        (["--version", "1.4.0"], 2, "Say it with --for HW_ID, or --chip"),
        (["--chip", "0x410"], 2, "say it with --version 1.4.0"),
        (["--version", "1", "--chip", "abc"], 2, "are written as 0x413"),
        (["--version", "1", "--chip", "0x410", "--board", "../x"], 2, "a name of letters"),
    ):
        got, _, err = cli("flash", file, *args)
        assert (got, why in err) == (code, True), err
    assert stm32.erased == []
    got, _, err = cli("flash", str(cli.folder / "none.bin"), "--version", "1", "--chip", "0x410")
    assert (got, "cannot read" in err) == (2, True)


def test_ota_f44_protection_is_told(cli: Cli) -> None:
    with PtyLine(Stm32(**F1, protected=True)) as line:
        cli.device = line.path
        code, _, err = cli("probe", state=False)
    assert code == 1
    assert "readout protection is set. It is never taken off from here" in err


def test_nobody_answers_and_no_line(cli: Cli) -> None:
    board = Stm32(**F1)
    board.cut()
    with PtyLine(board) as line:
        cli.device = line.path
        code, _, err = cli("probe", state=False)
    assert code == 3
    assert "An STM32 has to be started with BOOT0 set" in err
    cli.device = "/dev/ttyNONE"
    for kind in ("stm32", "modbus", "smp", "terra-ac"):
        code, _, err = cli("probe", "--loader", kind, state=False)
        assert code == 3
        assert "cannot open /dev/ttyNONE" in err
    for device, kind, why in (
        ("tcp://h:1", "stm32", "needs a serial line"),
        ("tcp://h", "modbus", "tcp://HOST:PORT is wanted"),
    ):
        cli.device = device
        code, _, err = cli("probe", "--loader", kind, state=False)
        assert (code, why in err) == (2, True)


def test_a_board_that_cannot_be_written_is_faulted_and_recovered(cli: Cli) -> None:
    board = Stm32(**F1, faults=Faults(silent_writes=10_000))
    with PtyLine(board) as line:
        cli.device = line.path
        file = cli.file(make_image(SIZE, "1.4.0"))
        code, out, err = cli("flash", file, "--version", "1.4.0", "--chip", "0x410", "--json")
        told = json.loads(out)
        assert (code, told["result"], told["version"]) == (1, "faulted", None)
        assert told["reason"].startswith("3 tries failed, at last: the flash holds ff")
        assert err == ""
        board.faults.silent_writes = 0
        code, out, _ = cli("recover", "--json")
    assert (code, json.loads(out)["result"]) == (0, "installed")
    assert board.running() is not None


def test_a_board_behind_modbus(cli: Cli) -> None:
    board = ModbusBoard(unit=7)
    with PtyLine(board) as line:
        cli.device = line.path
        named = ("--loader", "modbus", "--unit", "7")
        first = cli.file(make_image(SIZE, "1.0.0"), "first.bin")
        bad = cli.file(make_image(SIZE, "1.1.0", healthy=False), "bad.bin")
        code, out, err = cli("flash", first, "--version", "1.0.0", "--for", "KPB-22", *named)
        assert (code, err) == (0, "")
        assert out.startswith("the board has 1.0.0 and answers")
        code, out, _ = cli("probe", "--json", *named, state=False)
        told = json.loads(out)
        assert (told["version"], told["hw_id"], told["loader"]) == ("1.0.0", "KPB-22", None)
        assert cli("verify", first, *named, state=False)[0] == 0
        code, _, err = cli("verify", bad, *named, state=False)
        assert (code, "and the image's begins with" in err) == (1, True)
        code, _, err = cli("flash", bad, "--version", "1.1.0", "--for", "KPB-22", *named)
        assert code == 1
        assert "the image was given up and 1.0.0 put back" in err
        assert "its self-test fails" in err


def test_a_board_with_mcuboot(cli: Cli) -> None:
    board = SmpBoard()
    board.load(make_signed(SIZE, "0.1.0"))
    with PtyLine(board) as line:
        cli.device = line.path
        file = cli.file(make_signed(SIZE, "1.1.0"))
        named = ("--loader", "smp", "--hw-id", "KPB-22")
        code, out, err = cli("flash", file, "--for", "KPB-22", *named)
        assert (code, err) == (0, "")
        assert out.startswith("the board has 1.1.0 and answers")
        assert cli("verify", file, "--loader", "smp", state=False)[0] == 0
    assert board.running() == "1.1.0"


def test_a_terra_ac_is_locked(cli: Cli) -> None:
    charger = TerraAc()
    with PtyLine(charger) as line:
        cli.device = line.path
        file = cli.file(make_image(SIZE, "1.8.21"))
        named = ("--loader", "terra-ac", "--version", "1.8.21", "--for", "ABB Terra AC")
        code, _, err = cli("flash", file, *named)
        assert code == 1
        assert "name it with --terra-ac-checksum (crc32 or sum)" in err
        assert cli("flash", file, *named, "--terra-ac-checksum", "md5")[0] == 2
        assert charger.written == []
        assert cli("flash", file, *named, "--terra-ac-checksum", "crc32")[0] == 0
    assert charger.version == (1, 8, 21)


class KillsAt:
    """Passes everything to the board; kills the host when so many blocks are programmed."""

    def __init__(self, board: Stm32, block: int) -> None:
        self._board, self._block = board, block
        self.host: subprocess.Popen[bytes] | None = None

    def feed(self, octets: bytes) -> bytes:
        answer = self._board.feed(octets)
        if self.host is not None and len(self._board.programmed) >= self._block:
            self.host.kill()
            self.host = None
        return answer


@pytest.mark.system
def test_ota_f42_the_command_is_killed_and_recovered(tmp_path: Path, sample_size, kills) -> None:
    """SIGKILL of the real process; the image comes from the store, not from the file."""
    octets = make_image(SIZE, "1.4.0")
    blocks = 12
    step = max(1, blocks // sample_size(2, blocks))
    for block in range(1, blocks + 1, step):
        folder = tmp_path / str(block)
        folder.mkdir()
        file = folder / "image.bin"
        file.write_bytes(octets)
        board = Stm32(**F1)
        killer = KillsAt(board, block)
        keep = ["--state", str(folder / "state")]
        command = [sys.executable, "-m", "karvon", "bridge"]
        with PtyLine(killer) as line:
            said = ["--version", "1.4.0", "--chip", "0x410"]
            host = subprocess.Popen(
                [*command, "flash", str(file), "--device", line.path, *keep, *said],
                stdout=subprocess.DEVNULL,
            )
            killer.host = host
            with host:
                assert host.wait(60) == -9
            kills.count("a block of a board's image")
            file.unlink()
            done = subprocess.run(
                [*command, "recover", "--device", line.path, *keep, "--json"],
                capture_output=True,
                timeout=100,
                check=False,
            )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["result"] == "installed"
        assert board.flash.octets[:SIZE] == octets


@pytest.mark.system
@pytest.mark.parametrize("kind", ["stm32", "modbus", "smp"])
def test_a_board_to_try_it_on(cli: Cli, kind: str) -> None:
    """`karvon sim loader` as a process of its own, found by `karvon bridge probe`."""
    link = cli.folder / "line"
    command = [sys.executable, "-m", "karvon", "sim", "loader", "--kind", kind, "--pty", str(link)]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE) as served:
        assert served.stdout is not None
        assert json.loads(served.stdout.readline()) == {"loader": kind, "pty": str(link)}
        cli.device = str(link)
        try:
            code, out, err = cli("probe", "--loader", kind, "--json", state=False)
        finally:
            served.terminate()
        assert served.wait(60) == 0
    assert code == 0, err
    expected = {"stm32": "STM32 ROM loader 3.1", "modbus": "Modbus loader 1.0.0"}
    assert json.loads(out)["loader"] == expected.get(kind, "MCUboot behind SMP")
    assert not link.is_symlink()


def test_help_is_quick_for_it_loads_no_loader() -> None:
    script = (
        "import sys; import firmware_bridge.cli;"
        "sys.exit(any(name in sys.modules for name in ('serial', 'pymodbus', 'smpclient')))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
