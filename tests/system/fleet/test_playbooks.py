"""What of the playbooks can be judged without a machine to install on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[3]
ANSIBLE = PROJECT / "ansible"
PLAYBOOKS = sorted(path.name for path in ANSIBLE.glob("*.yml"))
Fleet = Any  # the fixture's class lives in conftest, which cannot be imported
EMBEDDED = re.compile(r"<!-- unit -->\n```ini\n# /etc/systemd/system/(\S+)\n(.*?)```", re.DOTALL)


def test_ansible_lint_finds_nothing_at_its_strictest(fleet: Fleet) -> None:
    done = fleet.run("ansible-lint", "--offline", "--profile", "production", "--strict")
    assert done.returncode == 0, done.stdout
    assert "0 failure(s), 0 warning(s)" in done.stdout


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_playbooks_can_be_read_with_the_example_inventory(fleet: Fleet, playbook: str) -> None:
    done = fleet.run("ansible-playbook", "-i", "inventories/example", "--syntax-check", playbook)
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout


@pytest.mark.parametrize("page", ["releases.md"])
def test_units_in_the_pages_are_those_that_are_installed(page: str) -> None:
    shown = EMBEDDED.findall((PROJECT / "docs" / page).read_text())
    assert shown
    for name, text in shown:
        (installed,) = ANSIBLE.glob(f"roles/*/files/{name}")
        assert installed.read_text() == text, name


def test_systemd_finds_nothing_wrong_with_the_units(root: Any) -> None:
    """With stand-ins for the programs that only an installation brings."""
    for program in ("/opt/karvon-cloud/bin/karvon", "/usr/local/lib/karvon/renew-certificates"):
        root.there(program).parent.mkdir(parents=True, exist_ok=True)
        root.there(program).write_text("#!/bin/sh\n")
        root.there(program).chmod(0o755)
    units = [
        path
        for kind in ("service", "timer", "path")
        for path in ANSIBLE.glob(f"roles/*/files/*.{kind}")
    ]
    assert len(units) > len(PLAYBOOKS)
    for path in units:
        root.there(f"/etc/systemd/system/{path.name}").write_bytes(path.read_bytes())
    names = [path.name.replace("@.", "@api.") for path in units]
    assert root.run("systemd-analyze", "verify", "--man=no", *names) == ""
    wrong = root.there("/etc/systemd/system/wrong.service")
    wrong.write_text("[Service]\nExecStart=/nowhere\nRestrat=always\n")
    assert "Restrat" in root.run("systemd-analyze", "verify", "--man=no", wrong.name, code=1)
