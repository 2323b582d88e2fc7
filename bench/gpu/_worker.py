"""One part in a process of its own: ``python -m bench.gpu._worker kernels --device cuda --seconds 90 --out FILE``.

FILE gets one line of JSON as each result comes, so that a crash or a kill loses only what was not reached.
"""

import argparse
import importlib
import json
import traceback
from pathlib import Path

import torch

from bench.gpu._case import Case, Clock, LeftOut

PROJECT = ("balanced_grad", "bench", "tests")


def describe(error: BaseException) -> str:
    """The error, and the last line of the project on its way."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if any(f"/{name}/" in f.filename for name in PROJECT)
    ]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def missing(error: ImportError) -> bool:
    """Whether a package of others is not there: an import of our own that fails is a failure."""
    return (error.name or "").split(".")[0] not in PROJECT


def outcome(case: Case, clock: Clock) -> dict:
    """Numbers of a case, or why there are none."""
    if clock.left() <= 0:
        return {"left_out": "no time was left"}
    try:
        return case.run()
    except (LeftOut, torch.OutOfMemoryError) as error:
        return {"left_out": str(error).splitlines()[0]}
    except Exception as error:  # whatever it is, the other cases run
        if isinstance(error, ImportError) and missing(error):
            return {"left_out": str(error)}
        return {"errors": [describe(error)]}
    finally:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def work(part: str, device: str, seconds: float, write) -> None:
    """Write which cases there are, then what came out of each."""
    clock = Clock(seconds)
    if device == "cpu":
        torch.set_num_threads(1)  # small sizes: more threads only wait for each other
    try:
        cases = importlib.import_module(f"bench.gpu._{part}").cases(device, clock)
    except ImportError as error:
        write({"row": "", **({"left_out": str(error)} if missing(error) else {"errors": [describe(error)]})})
        return
    write({"cases": [(case.row, case.column) for case in cases]})
    for case in cases:
        write({"row": case.row, "column": case.column} | outcome(case, clock))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part")
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with arguments.out.open("a", encoding="utf-8") as file:

        def write(record: dict) -> None:
            file.write(json.dumps(record) + "\n")
            file.flush()

        work(arguments.part, arguments.device, arguments.seconds, write)


if __name__ == "__main__":
    main()
