import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import rigs


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while rigs.OPEN:
        rigs.OPEN.pop().close()


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where it can be: the plan asks the disk thousands of times, and waits each time."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="karvon-test-", dir=shared) as folder:
        yield Path(folder)
