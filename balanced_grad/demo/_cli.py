"""``balanced-grad demo``: arguments, progress, and where the results go."""

import argparse
import importlib.util
import json
import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from balanced_grad import demo
from balanced_grad.demo._compare import compare
from balanced_grad.demo._data import Dataset, DemoError
from balanced_grad.demo._digits import load_digits
from balanced_grad.demo._folder import available, load_folder
from balanced_grad.demo._packaged import PACKAGED
from balanced_grad.demo._report import headline, numbers, table
from balanced_grad.demo._train import BALANCED, BATCH, Method

BUILT_IN = ("digits", "digits-hard")
EXTRAS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}
STEPS, STEPS_IMAGES = 500, 1800
FOLDER = "BALANCED_GRAD_DATA"


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = commands.add_parser(
        "demo",
        help="train a real late-fusion model with and without balancing, and compare",
        description=demo.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=partial(main, parser))
    names = ", ".join(method.name for method in BALANCED)
    parser.add_argument(
        "--dataset",
        metavar="NAME",
        help=f"{' or '.join(BUILT_IN)} (built in), {', '.join(PACKAGED)} (in packages; a missing one is named "
        "with its command), or a set in --data such as mfeat or avmnist:clean,noisy (default: digits)",
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        help=f"folder with real data sets, NAME/NAME.npz and NAME.json each (default: ${FOLDER})",
    )
    parser.add_argument(
        "--balancer",
        metavar="NAME[,NAME]",
        action="append",
        help=f"compare only these of {names} with joint and uni-modal training; may be repeated",
    )
    parser.add_argument("--seeds", metavar="N", type=_count, default=3, help="number of seeds (default: 3)")
    parser.add_argument(
        "--epochs",
        metavar="N",
        type=_count,
        help=f"passes over the training items (default: as many as make {STEPS} steps; with images {STEPS_IMAGES})",
    )
    parser.add_argument("--device", default="cpu", help="where to train: cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="write the picture and all numbers to this folder")


def main(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run the demo; what cannot be done ends as a wrong argument does, with status 2 and a message."""
    try:
        run(args)
    except DemoError as error:
        parser.error(str(error))
    return 0


def run(args: argparse.Namespace) -> None:
    """Run the demo; raises `DemoError` for what cannot be done."""
    start = time.perf_counter()
    require_extras()
    methods, device = choose_methods(args.balancer), choose_device(args.device)
    data = load(*choose_data(args.dataset, args.data))
    if args.out is not None:
        prepare(args.out)
    epochs = args.epochs or default_epochs(data)
    print(headline(data, args.seeds, epochs, str(device)), end="\n\n", flush=True)

    from tqdm import tqdm

    with tqdm(total=(2 + len(methods)) * args.seeds * epochs, unit="epoch", disable=None, leave=False) as bar:

        def tick(what: str) -> None:
            bar.set_description(what, refresh=False)
            bar.update()

        results = compare(data.to(device), methods, args.seeds, epochs, tick)
    print(table(results), end="\n\n")
    seconds = time.perf_counter() - start
    if args.out is not None:
        from balanced_grad.demo._plot import plot

        settings = {"seeds": args.seeds, "epochs": epochs, "device": str(device)}
        write(args.out / f"{stem(data)}.json", numbers(data, results, settings, seconds))
        plot(data, results, args.out / f"{stem(data)}.png")
        print(f"wrote {args.out / stem(data)}.png and .json")
    print(f"{time.perf_counter() - start:.0f} s in all")


def choose_data(dataset: str | None, folder: Path | None) -> tuple[str, Path | None]:
    """Complete what was asked for; a folder without a choice from it is a mistake worth a word."""
    if folder is not None and dataset is None:
        names = ", ".join(available(folder)) or "none"
        raise DemoError(f"--data {folder} needs a --dataset from it; there: {names}")
    if folder is None and os.environ.get(FOLDER):
        folder = Path(os.environ[FOLDER])
    return dataset or BUILT_IN[0], folder


def load(dataset: str, folder: Path | None) -> Dataset:
    """Load the data set of that name."""
    if dataset in BUILT_IN:
        return load_digits(hard=dataset == "digits-hard")
    if dataset in PACKAGED:
        return PACKAGED[dataset]()
    built_in = f"built in: {', '.join((*BUILT_IN, *PACKAGED))}"
    if folder is None:
        raise DemoError(f"unknown data set {dataset!r}; {built_in}; for others name their folder with --data")
    if not folder.is_dir():
        raise DemoError(f"--data {folder} is not a folder; {built_in}")
    names = available(folder)
    if dataset.partition(":")[0] not in names:
        raise DemoError(f"unknown data set {dataset!r}; {built_in}; in {folder}: {', '.join(names) or 'none'}")
    return load_folder(folder, dataset)


def choose_methods(requests: list[str] | None) -> list[Method]:
    """Find the balancers asked for, in the order of the table; all of them by default."""
    by_key = {_key(method.name): method for method in BALANCED}
    wanted = [name for request in requests or by_key for name in request.split(",")]
    for name in wanted:
        if _key(name) not in by_key:
            possible = ", ".join(method.name for method in BALANCED)
            raise DemoError(f"unknown balancer {name!r}; possible: {possible}")
    return [method for key, method in by_key.items() if key in map(_key, wanted)]


def choose_device(request: str) -> torch.device:
    """Find the device of that name."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    possible = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if request not in possible:
        raise DemoError(f"cannot train on {request!r}; possible here: {', '.join(possible)}")
    return torch.device(request)


def require_extras() -> None:
    """Say how to install what the demo needs beyond the library itself."""
    missing = [name for module, name in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DemoError(f"the demo needs {', '.join(missing)}: pip install 'balanced-grad[demo]'")


def default_epochs(data: Dataset) -> int:
    """Choose a budget by steps, in which the networks of all methods have settled."""
    images = any(len(shape) > 1 for shape in data.shapes.values())
    return math.ceil((STEPS_IMAGES if images else STEPS) / math.ceil(len(data.train) / BATCH))


def prepare(folder: Path) -> None:
    """Make the output folder before a minute is spent on what goes there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(f"cannot write to --out {folder}: {error.strerror}") from error


def stem(data: Dataset) -> str:
    """Name the files of a data set."""
    return "demo-" + "".join(c if c.isalnum() else "-" for c in data.name)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _key(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
