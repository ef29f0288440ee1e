from __future__ import annotations

from pathlib import Path

import pytest
from ota_world import Maker, World


@pytest.fixture
def world(tmp_path: Path, makers: Maker) -> World:
    return World(tmp_path, makers)
