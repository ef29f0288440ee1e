"""Run the benchmarks: one JSON line per figure on stdout, progress on stderr, exit 1 if one fails.

python tests/benchmarks/run.py [wire …]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from pathlib import Path

BENCHMARKS = ("wire", "agent", "link", "ingest")
ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Measure the named benchmarks (all by default); returns the process exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--runs", type=int, default=3, help="repeat and take medians (default 3)")
    args = parser.parse_args()
    unknown = set(args.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    holds = True
    for name in args.names or BENCHMARKS:
        sys.stderr.write(f"bench: {name} …\n")
        module = importlib.import_module(name)
        for figure in asyncio.run(module.measure(args.runs)):
            sys.stdout.write(json.dumps(figure.line()) + "\n")
            sys.stdout.flush()
            holds = holds and figure.holds
    return 0 if holds else 1


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
