from __future__ import annotations

from pathlib import Path

import pytest
from ota_world import Maker, World


@pytest.fixture(scope="session")
def makers(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Makers who have published their keys, and nothing else."""
    folder = tmp_path_factory.mktemp("makers")
    maker = Maker(folder / "repo")
    maker.publish(folder / "shown")
    return maker


@pytest.fixture
def world(tmp_path: Path, makers: Maker) -> World:
    return World(tmp_path, makers)
