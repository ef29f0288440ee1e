"""Run the benchmarks: one JSON line per figure on stdout, progress on stderr, exit 1 if one fails.

python tests/benchmarks/run.py [wire …] [--soak MINUTES]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from pathlib import Path

BENCHMARKS = (
    "wire",
    "agent",
    "bus",
    "replay",
    "link",
    "ingest",
    "storage",
    "api",
    "ocpp_parse",
    "ocpp_gateway",
    "ota",
    "ota_line",
    "ota_campaign",
)
WHEN_NAMED = ("soak", "ocpp_idle")
"""Long: they run when they are asked for."""
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Measure the named benchmarks (all by default); returns the process exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = (*BENCHMARKS, *WHEN_NAMED)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--runs", type=int, default=3, help="repeat and take medians (default 3)")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="run soak for so long")
    args = parser.parse_args()
    unknown = set(args.names) - set(known)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    names = args.names or ([] if args.soak else list(BENCHMARKS))
    if args.soak and "soak" not in names:
        names.append("soak")
    holds = True
    for name in names:
        sys.stderr.write(f"bench: {name} …\n")
        module = importlib.import_module(name)
        options = {"minutes": args.soak} if name == "soak" and args.soak else {}
        for figure in asyncio.run(module.measure(args.runs, **options)):
            sys.stdout.write(json.dumps(figure.line()) + "\n")
            sys.stdout.flush()
            holds = holds and figure.holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
