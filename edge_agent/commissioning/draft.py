"""The agent's TOML file, changed setting by setting and put in place only when it is right."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any, Final

import tomli_w

from edge_agent.config import Config, ConfigError, load
from edge_agent.main import hardware
from edge_agent.private import sync_folder, write_private

PUBLIC: Final = 0o640
Tables = dict[str, Any]


def read_plain(path: Path) -> Tables:
    """What stands there; nothing where there is no file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); mend it or move it away, it would be replaced"
        ) from error


def changed(plain: Tables, **tables: Any) -> Tables:
    """A copy with these tables merged into it; None removes a setting."""
    merged = dict(plain)
    for name, value in tables.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            there = merged.get(name)
            merged[name] = changed(there if isinstance(there, dict) else {}, **value)
        else:
            merged[name] = value
    return merged


def keep_old(path: Path) -> Path | None:
    """A copy of what is there, as .bak; None where nothing is. Raises OSError."""
    if not path.exists():
        return None
    copy = path.with_name(f"{path.name}.bak")
    draft = copy.with_name(f"{copy.name}.new")
    shutil.copy2(path, draft)
    draft.replace(copy)
    sync_folder(path.parent)
    return copy


def place(path: Path, plain: Tables) -> Config:
    """Put it in place, whole, once the agent's own loader takes it. Raises ConfigError, OSError."""
    trial = path.with_name(f"{path.name}.trial")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(trial, tomli_w.dumps(plain).encode())
    try:
        config = load(trial)
        hardware(config)
    except ConfigError as error:
        trial.unlink()
        raise ConfigError(str(error).replace(str(trial), str(path))) from error
    trial.chmod(path.stat().st_mode & 0o777 if path.exists() else PUBLIC)
    trial.replace(path)
    sync_folder(path.parent)
    return config
