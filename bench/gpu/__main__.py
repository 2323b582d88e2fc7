import argparse
import json
import sys
from pathlib import Path

import torch

import bench.gpu
from bench.gpu._case import Clock
from bench.gpu._parts import SHARES, run_all
from bench.gpu._report import machine, report

ENDS = 15  # seconds kept for starting and for writing


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.gpu", description=bench.gpu.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything; default: 9")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder of gpu.json and gpu.md")
    arguments = parser.parse_args()
    clock = Clock(60 * arguments.minutes - ENDS)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device here; --device cpu rehearses all parts at small sizes")
    described, records = machine(arguments.device), []
    arguments.out.mkdir(parents=True, exist_ok=True)
    for record in run_all(arguments.parts, arguments.device, clock):
        records.append(record)
        # After every record, so that an interruption keeps what there is.
        content = json.dumps(described | {"records": records}, indent=1)
        (arguments.out / "gpu.json").write_text(content, encoding="utf-8")
        (arguments.out / "gpu.md").write_text(report(described, records), encoding="utf-8")
    print(report(described, records))
    sys.exit(any(record.get("errors") for record in records))


if __name__ == "__main__":
    main()
