"""What Mosquitto reads, in FOLDER: our shipped settings and ACL file, a certificate, accounts.

`mosquitto_files.py FOLDER PORT`, with the accounts as JSON `{user: secret}` in KARVON_ACCOUNTS.
It needs karvon's virtual environment and the project on PYTHONPATH; tools/services.py sees to both.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

from cloud.communication.credentials import mosquitto_hash
from cloud.kernel.embedded.tls import TlsFiles, ensure_certificates, write_private

SHIPPED = Path(__file__).resolve().parent.parent / "cloud" / "deploy" / "mosquitto"


def main(folder: Path, port: int, accounts: dict[str, str]) -> None:
    tls = ensure_certificates(folder / "tls", [], datetime.now(UTC))
    shutil.copy(SHIPPED / "acl", folder / "acl")
    (folder / "acl").chmod(0o600)
    (folder / "mosquitto.conf").write_text(settings(folder, port, tls))
    lines = [
        f"{user}:{mosquitto_hash(secret, os.urandom(12))}\n" for user, secret in accounts.items()
    ]
    write_private(folder / "passwd", "".join(lines).encode())


def settings(folder: Path, port: int, tls: TlsFiles) -> str:
    """The shipped file with this folder's paths and this port; all else stays as it is shipped."""
    text = (SHIPPED / "mosquitto.conf").read_text()
    values = {
        "listener": f"{port} 127.0.0.1",
        "certfile": tls.certificate,
        "keyfile": tls.key,
        "password_file": folder / "passwd",
        "acl_file": folder / "acl",
    }
    for key, value in values.items():
        text, found = re.subn(rf"^{key} .*$", f"{key} {value}", text, flags=re.MULTILINE)
        if found != 1:
            sys.exit(f"{SHIPPED / 'mosquitto.conf'} must say `{key}` once, not {found} times")
    owner = "user root\n" if os.geteuid() == 0 else ""
    return f"{text}{owner}persistence_location {folder}/\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(os.environ["KARVON_ACCOUNTS"]))
