"""Takes secrets out of what leaves the controller; id tokens become names that only this copy has.

Two nets, one behind the other: what a name says is secret is left out whatever it holds, and what
is known to be secret (the files beside the configuration) is taken out wherever it turns up.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec

REMOVED: Final = "(removed)"
SECRET_NAME: Final = re.compile(r"pass(word|phrase|wd)?|secret|token|api_?key|^key$|pin$")
SETTING: Final = re.compile(
    r"(?im)^\s*[\w.-]*(?:password|secret|token|key)[\w.-]*\s*[=:]\s*(\S.*)$"
)
TOKEN_IN_TEXT: Final = re.compile(r"(?<=\bid token )(?!is\b|was\b|has\b)[^\s,;:]+")
USER_IN_URL: Final = re.compile(r"(?<=://)[^/@\s\"']+@")
PEM: Final = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----(.*?)-----END", re.DOTALL)
TOKEN_NAMES: Final = frozenset({"id_token", "group_id_token"})
CREDENTIALS: Final = "credentials.json"
LONGEST_PATH: Final = 4096
LARGEST: Final = 256 * 1024
SHORT: Final = 6
"""A shorter secret is taken out as a whole word only: it would tear holes everywhere."""


class UnreadableSecretError(Exception):
    """A file with secrets cannot be read, so they could not be found elsewhere either."""


class Redactor:
    """Knows what must not leave; `text` and `plain` return their argument without it."""

    def __init__(self, secrets: Iterable[str], tokens: Iterable[str], salt: bytes) -> None:
        self._secrets = _forms(secrets)
        self._salt = salt
        found = {token for token in tokens if token}
        self._words = {token for token in found if re.fullmatch(r"\w+", token)}
        self._phrases = sorted(found - self._words, key=len, reverse=True)

    def token(self, value: str) -> str:
        """The same token has the same name within one copy, and no way back."""
        told = hashlib.sha256(self._salt + value.encode()).hexdigest()
        return f"token-{told[:8]}"

    def text(self, text: str) -> str:
        for secret in self._secrets:
            if len(secret) >= SHORT:
                text = text.replace(secret, REMOVED)
            else:
                text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", REMOVED, text)
        for phrase in self._phrases:
            text = text.replace(phrase, self.token(phrase))
        text = re.sub(r"\w+", self._word, text)
        text = TOKEN_IN_TEXT.sub(lambda match: self._told(match.group()), text)
        return USER_IN_URL.sub(f"{REMOVED}@", text)

    def _word(self, match: re.Match[str]) -> str:
        word = match.group()
        return self.token(word) if word in self._words else word

    def _told(self, found: str) -> str:
        return found if found.startswith(("token-", REMOVED)) else self.token(found)

    def plain(self, value: Any, name: str = "") -> Any:
        """A JSON value, whatever is in it."""
        if name in TOKEN_NAMES:
            return self._id_token(value)
        if isinstance(value, Mapping):
            return {str(key): self.plain(each, str(key)) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(each, name) for each in value]
        if isinstance(value, str):
            secret = SECRET_NAME.search(name.lower()) and value
            return REMOVED if secret else self.text(value)
        return value

    def _id_token(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.token(value) if value else value
        if isinstance(value, Mapping):
            return {
                key: self.token(each) if key == "value" and each else each
                for key, each in value.items()
            }
        return value


def _forms(secrets: Iterable[str]) -> list[str]:
    """Each secret as it may be written, the longest first so that none leaves its tail behind."""
    found: set[str] = set()
    for secret in secrets:
        found |= {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1]}
        found.add(json.dumps(secret, ensure_ascii=False)[1:-1])
        found |= {base64.b64encode(secret.encode()).decode(), secret.encode().hex()}
        found |= _inside_base64(secret)
    return sorted((each for each in found if each), key=len, reverse=True)


def _inside_base64(secret: str) -> set[str]:
    """What base64 makes of it behind one to three other octets, as in `user:password`."""
    found = set()
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + secret.encode()).decode().rstrip("=")
        whole = coded[-(-shift * 8 // 6) : len(coded) - 1]
        if len(whole) >= SHORT:
            found.add(whole)
    return found


def secrets_in(text: str) -> set[str]:
    """What is secret in a file beside the configuration: credentials, a key, a password file."""
    found = {
        line.strip()
        for body in PEM.findall(text)
        for line in body.splitlines()
        if len(line.strip()) >= SHORT
    }
    try:
        found |= _named_secrets(msgspec.json.decode(text))
    except msgspec.DecodeError:
        found |= {match.strip().strip("\"'") for match in SETTING.findall(text)}
        lines = text.split("\n")
        if len([line for line in lines if line.strip()]) == 1 and "-----" not in text:
            found.add(text.strip())
    return found - {""}


def _named_secrets(value: Any, name: str = "") -> set[str]:
    if isinstance(value, dict):
        parts = [_named_secrets(each, str(key)) for key, each in value.items()]
    elif isinstance(value, list):
        parts = [_named_secrets(each, name) for each in value]
    else:
        secret = isinstance(value, str) and SECRET_NAME.search(name.lower())
        return {value} if secret else set()
    return set().union(*parts)


def secrets_of(config: Path, settings: Any) -> set[str]:
    """All that is secret around a configuration: in it, in the files it names, and beside it.

    Raises UnreadableSecretError.
    """
    folder = config.absolute().parent
    texts = [text for text in _strings(settings) if 0 < len(text) < LONGEST_PATH]
    named = {folder / text for text in (*texts, CREDENTIALS)}
    beside = {path for path in folder.iterdir() if path.suffix != ".toml"}
    found = {text for text in _named_secrets(settings) if not (folder / text).is_file()}
    for path in sorted((named | beside) - {config.absolute()}):
        found |= _secrets_of_file(path, must=path in named)
    return found


def _secrets_of_file(path: Path, *, must: bool) -> set[str]:
    """What the agent's own user cannot read, the agent cannot have told either."""
    try:
        if path.suffix == ".yaml" or not path.is_file() or path.stat().st_size > LARGEST:
            return set()
        return secrets_in(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return set()  # a binary file never appears in a text
    except OSError as error:
        if must and isinstance(error, PermissionError):
            raise UnreadableSecretError(
                f"{path} cannot be read ({error.strerror}), so its secrets could not be taken out; "
                "run this as the agent's user or root"
            ) from error
        return set()


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in _strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in _strings(each)]
    return [value] if isinstance(value, str) and "\0" not in value else []
