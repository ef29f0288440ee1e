"""`karvon agent claim`: exchange a single-use code for this station's credentials."""

from __future__ import annotations

from pathlib import Path

from edge_agent import joining
from edge_agent.cli.output import complain, print_json, print_lines
from edge_agent.config import ConfigError, UplinkPart, load
from edge_agent.joining import JoinError, Waiting


def claim(path: Path, cloud: str, code: str | None, *, as_json: bool) -> int:
    """Store the credentials where the configuration says.

    0 done, 1 refused or waiting for approval, 2 wrong usage, 3 the cloud is out of reach.
    """
    try:
        config = load(path)
        part = config.uplink or UplinkPart()
        answer = joining.claim(cloud, config.station, code, config.path(part.credentials))
    except ConfigError as error:
        return complain(str(error), 2)
    except JoinError as error:
        return complain(str(error), error.code)
    except OSError as error:
        return complain(f"the credentials cannot be stored: {error}; then claim once more", 1)
    if isinstance(answer, Waiting):
        return _wait(answer, as_json=as_json)
    if as_json:
        print_json(
            {
                "station": answer.station,
                "mqtt_url": answer.mqtt_url,
                "stored": str(answer.credentials),
                "certificate_until": answer.certificate_until,
            }
        )
    else:
        where = answer.credentials
        print_lines([f"station {answer.station} is claimed; credentials are in {where}"])
    if config.uplink is None:
        complain("the configuration has no [uplink] yet; add the table so that they are used", 0)
    return 0


def _wait(answer: Waiting, *, as_json: bool) -> int:
    if as_json:
        print_json({"station": answer.station, "status": "pending", "code": answer.code})
    elif answer.code is not None:
        print_lines(
            [
                f"station {answer.station} waits for an operator's approval; once approved:",
                f"karvon agent claim --cloud ADDRESS --code {answer.code}",
            ]
        )
    else:
        print_lines([f"station {answer.station} {answer.detail}"])
    return 1
