#!/usr/bin/env python
"""The data plane in one run: aligning, packing and streaming against what one would use instead.

    ./scripts/bench_data.py [--quick] [--json] [--faces DIR]

The rows of scripts/bench_align.py and scripts/bench_stream.py, where they are explained.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import bench_align
import bench_stream
from bench import facts, told


def measure(quick: bool, work: Path, faces: Path | None) -> dict[str, Any]:
    """The figures of both, the rows of one after those of the other."""
    (work / "align").mkdir()
    (work / "stream").mkdir()
    with bench_stream.prepared(quick, work / "stream") as bench:
        align = bench_align.measure(quick, work / "align", faces, before=bench.wait)
        stream = bench.measure()
    if not quick:
        stream |= bench_stream.measure_more(work / "stream")
    rows = {name: align[name] | stream[name] for name in ("medians", "spread")}
    return align | stream | rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="at most 50 s on two quiet cores")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--faces", type=Path, help="photos to align, instead of drawn faces")
    arguments = parser.parse_args()
    logging.getLogger("persona").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as work:
        result = measure(arguments.quick, Path(work), arguments.faces)
    known = facts("torch", "facenet-pytorch", "pillow", "simplejpeg", "webdataset")
    if arguments.json:
        print(json.dumps({**result, **known}, indent=2))
        return
    print(bench_align.table(result))
    print(f"three mixed sets over one {result['mixed_over_stream']:.2f}")
    for peer, ratio in result["stream_over"].items():
        print(f"stream over {peer} {ratio:.2f}")
    print(told(known))


if __name__ == "__main__":
    main()
