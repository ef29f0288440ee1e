from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_agent import config as configuration
from edge_agent.config import ConfigError

EXAMPLE = Path(configuration.__file__).with_name("example.toml")

SMALL = """
station = "TAS-1"
[journal]
folder = "journal"
[[boards]]
name = "left"
profile = "abb_terra_ac"
link = { kind = "tcp", host = "192.0.2.1" }
"""


def test_the_example_is_valid_and_shows_every_setting() -> None:
    text = EXAMPLE.read_text()
    config = configuration.load(EXAMPLE)
    assert [board.evses for board in config.boards] == [(1,), (2,)]
    parts = (
        configuration.Config,
        configuration.JournalPart,
        configuration.UplinkPart,
        configuration.OcppPart,
        configuration.BoardPart,
        configuration.SitePart,
        configuration.SurplusPart,
        configuration.MemberPart,
        configuration.FailsafePart,
        configuration.FaultsPart,
        configuration.AuthorizationPart,
        configuration.TimesPart,
        configuration.MeteringPart,
        configuration.LocalPagePart,
        configuration.UpdatesPart,
    )
    names = {name for part in parts for name in part.__struct_fields__} - {"base", "kind"}
    assert [name for name in names if name not in text] == []


def test_the_defaults_are_those_that_the_example_shows() -> None:
    small = configuration.parse(SMALL, "small")
    shown = configuration.load(EXAMPLE)
    assert (small.times, small.failsafe) == (shown.times, shown.failsafe)
    assert (small.authorization, small.metering) == (shown.authorization, shown.metering)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(SMALL)
    config = configuration.load(file)
    assert config.path(config.journal.folder) == tmp_path / "journal"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('station = "TAS-1"', 'station = ""', "station: a station identity has 1 to 48"),
        ('station = "TAS-1"', "", "missing required field `station`"),
        ('station = "TAS-1"', 'station = "T"\nplace = 1', "allowed there: station, journal"),
        ('name = "left"', "nam = 1", r"unknown setting 'nam' at \[boards"),
        ('host = "192.0.2.1"', "hots = 1", r"unknown setting 'hots' at \[boards\[0\].link\]"),
        ('folder = "journal"', "folder = 5", "Expected `str`, got `int`"),
        ('name = "left"', 'name = "left"\nevses = [1, 1]', "EVSE 1 is there already"),
        ('name = "left"', 'name = "left"\nevses = [0]', "start at 1"),
        ('name = "left"', 'name = "left"\nevses = []', "at least one EVSE"),
        ("[journal]", "[failsafe]\ncurrent_ma = 3000\n[journal]", "0 .stop. or at least 6000"),
        ("[journal]", "[failsafe]\ntimeout_s = 3\n[journal]", "failsafe.timeout_s: too short"),
        ("[journal]", "[times]\npoll_s = 99\n[journal]", "times.poll_s: 0.1 to 10"),
        ('station = "TAS-1"', 'base = "x"\nstation = "T"', "base: not a setting"),
        ("[journal]", "[uplink]\nmonthly_mib = 5\n[journal]", "name the interfaces"),
        ("[journal]", "[journal", "not TOML"),
        ('profile = "abb_terra_ac"', "", r"boards\[0\].profile: name the profile"),
        ('profile = "abb_terra_ac"', 'kind = "serial_board"', r"link.kind: .serial. for kind"),
        ('kind = "tcp"', 'kind = "serial"', 'link.kind: "tcp" or "rtu", not "serial"'),
        ('kind = "tcp"', 'rts = "low", kind = "tcp"', "link.rts: only for"),
        ('name = "left"', 'name = "left"\nkind = "serial_board"', "needs none; take it out"),
    ],
)
def test_a_wrong_file_is_refused_with_place_and_reason(old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refusal:
        configuration.parse(SMALL.replace(old, new), "agent.toml")
    assert str(refusal.value).startswith("agent.toml: ")


LEADER = """
[site]
role = "leader"
limit_ma = 40000
share_ma = 12000
members = [{ station = "TAS-2", share_ma = 12000 }, { station = "TAS-3", share_ma = 6000 }]
[journal]"""


def test_a_leader_whose_shares_fit_is_accepted() -> None:
    config = configuration.parse(SMALL.replace("[journal]", LEADER), "agent.toml")
    assert config.site is not None
    assert config.site.lines == (40_000, 40_000, 40_000)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "limit_ma = 40000",
            "limit_ma = [40000, 29000, 40000]",
            r"12000 \(TAS-1\) \+ 12000 \(TAS-2\) \+ 6000 \(TAS-3\) = 30000 mA, .* is 29000",
        ),
        (
            "share_ma = 12000\nmembers",
            "share_ma = 5000\nmembers",
            "1 EVSEs x failsafe.current_ma 6000 = 6000 mA .* more than the share of 5000",
        ),
        ("share_ma = 12000\nmembers", "members", "say what this controller may take"),
        ("TAS-3", "TAS-2", "TAS-2 is there twice"),
        ('role = "leader"', 'role = "alone"', "need role"),
        ('role = "leader"', 'role = "leader"\nlisten = "here"', "host:port, not 'here'"),
        ('role = "leader"', 'role = "follower"', "a follower needs the leader's host:port"),
        ('role = "leader"', 'role = "follower"\nleader = "a:1"', "only the leader has members"),
        ('role = "leader"', 'role = "leader"\nunbalance_ma = 10', "at least 6000"),
    ],
)
def test_controllers_that_do_not_fit_together_are_refused(old: str, new: str, says: str) -> None:
    text = SMALL.replace("[journal]", LEADER).replace(old, new)
    with pytest.raises(ConfigError, match=says):
        configuration.parse(text, "agent.toml")


def test_surplus_without_a_meter_is_refused() -> None:
    with pytest.raises(ConfigError, match="surplus needs a site meter"):
        configuration.parse(SMALL + "surplus = true\n", "agent.toml")


def test_two_boards_of_one_name_are_refused() -> None:
    board = SMALL[SMALL.index("[[boards]]") :]
    with pytest.raises(ConfigError, match="'left' is used twice"):
        configuration.parse(SMALL + board, "agent.toml")


def test_before_a_commissioning_only_the_boards_may_be_missing(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('station = "TAS-1"\n[updates]\nfolder = "floors"\n')
    config = configuration.load(file, unfinished=True)
    assert config.path(config.updates.folder) == tmp_path / "floors"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="journal"):
        configuration.load(file)
    file.write_text('station = ""\n')
    with pytest.raises(ConfigError, match="station"):
        configuration.load(file, unfinished=True)


def test_a_missing_file_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        configuration.load(tmp_path / "none.toml")


OCPP = (
    SMALL
    + """
[uplink.ocpp]
url = "wss://csms.example/ocpp"
"""
)


def test_an_ocpp_backend_has_everything_unless_something_else_is_said() -> None:
    alone = configuration.parse(OCPP, "ocpp")
    assert alone.ocpp is not None
    assert (alone.mqtt_carries, alone.ocpp.carries) == ((), configuration.EVERYTHING)
    some = configuration.parse(OCPP + 'carries = ["transactions"]', "ocpp")
    assert some.mqtt_carries == ("status", "telemetry")
    both = configuration.parse(
        OCPP.replace("[uplink.ocpp]", '[uplink]\ncarries = ["telemetry"]\n[uplink.ocpp]'), "ocpp"
    )
    assert both.mqtt_carries == ("telemetry",)
    assert configuration.parse(SMALL + "[uplink]", "mqtt").mqtt_carries == configuration.EVERYTHING
    assert configuration.parse(SMALL, "alone").mqtt_carries == ()


@pytest.mark.parametrize(
    ("more", "profile"),
    [
        ("", 0),
        ('password = "p"', 2),
        ('certificate = "c"\nkey = "k"', 3),
        ('password = "p"\nsecurity_profile = 2', 2),
    ],
)
def test_the_security_profile_is_what_the_files_make(more: str, profile: int) -> None:
    part = configuration.parse(OCPP + more, "ocpp").ocpp
    assert part is not None
    assert part.profile == profile


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("wss://", "https://", "uplink.ocpp.url: 'https://csms.example/ocpp' is not ws://"),
        ("csms.example", "user:secret@csms.example", "uplink.ocpp.url"),
        ("[uplink.ocpp]", '[uplink]\ncarries = ["transactions"]\n[uplink.ocpp]', "one uplink only"),
        ('ocpp"', 'ocpp"\ncarries = ["status"]\n[uplink]\ncarries = ["telemetry"]', "no uplink"),
        ('ocpp"', 'ocpp"\ncarries = []', "name at least one"),
        ('ocpp"', 'ocpp"\nversion = "1.5"', "1.5"),
        ('ocpp"', 'ocpp"\nsecurity_profile = 2', "2 needs wss:// and a password"),
        ('ocpp"', 'ocpp"\nsecurity_profile = 1\npassword = "p"', "1 needs ws://"),
        ('ocpp"', 'ocpp"\ncertificate = "c"', "a certificate needs its private key"),
        ('ocpp"', 'ocpp"\nidentity = ""', "1 to 48 characters"),
    ],
)
def test_contradictions_about_a_backend_are_refused(old: str, new: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        configuration.parse(OCPP.replace(old, new, 1), "ocpp")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[updates]\nurl = "https://cloud.example"', "director_root belong together"),
        ('[updates]\nurl = "http://cloud.example"\ndirector_root = "d"', "is not https"),
        ("[updates]\nrate_kib = 0", "rate_kib"),
    ],
)
def test_updates_without_trust_are_refused(text: str, why: str) -> None:
    with pytest.raises(configuration.ConfigError, match=why):
        configuration.parse(f"{SMALL}\n{text}\n", "small")
