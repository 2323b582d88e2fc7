"""``python -m bench.cross_modal_retrieval``."""

import argparse
import json
import os
from pathlib import Path

import torch
from tqdm import tqdm

from bench import _markdown as markdown
from bench import cross_modal_retrieval
from bench.cross_modal_retrieval._mir_flickr import load_mirflickr
from bench.cross_modal_retrieval._pairs import digits, movies
from bench.cross_modal_retrieval._study import MODELS, SIZES, study
from bench.cross_modal_retrieval._training import STAGES

SOURCE = {"K = 1": 0.034, "K = 5": 0.048, "K = 10": 0.050}  # unimodal mAP over K = 0 on MIR-Flickr
TUNED = {"multimodal": (0.632, 0.686), "unimodal": (0.521, 0.607)}  # before and after fine-tuning there


def mirflickr(seed):
    root = os.environ.get("BALANCED_GRAD_DATA")
    if not root:
        raise SystemExit(
            "set BALANCED_GRAD_DATA to the folder that holds mirflickr/; load_mirflickr says what is in it"
        )
    return load_mirflickr(Path(root) / "mirflickr", seed)


DATA = {"movies": movies, "digits": digits, "mirflickr": mirflickr}


def spread(values, sign=""):
    return markdown.mean_and_error(values, f"{sign}.3f")


def tables(rows):
    """Scores of both kinds of query; then what steps and fine-tuning are worth, seed by seed, beside the source's."""
    seeds = sorted({row["seed"] for row in rows})
    found = {(row["model"], row["stage"], row["seed"]): row for row in rows}
    models = list(dict.fromkeys(row["model"] for row in rows if "nll" in row))
    first, last = STAGES[0].name, STAGES[-1].name

    def of(model, stage, score):
        return [found[model, stage, seed][score] for seed in seeds]

    def gain(one, other):
        return spread([a - b for a, b in zip(one, other, strict=True)], "+")

    columns = [(query, stage) for query in TUNED for stage in (first, last)]
    heads = [f"{query}, {'before' if stage == first else 'after'}" for query, stage in columns]
    print("\n" + markdown.header("mAP by label", *heads))
    for model in models:
        print(markdown.row(model, *(spread(of(model, stage, query)) for query, stage in columns)))
    bounds = "linear, on the data"
    print(markdown.row(bounds, "", spread(of(bounds, "all", "multimodal")), "", spread(of(bounds, "all", "unimodal"))))
    print(markdown.row("order by chance", *[spread(of(bounds, "all", "chance"))] * 4))

    print(
        "\n" + markdown.header("after fine-tuning", "multimodal, cosine", "unimodal, cosine", "tags given image, nats")
    )
    for model in models:
        scores = ("multimodal, cosine", "unimodal, cosine", "nll")
        print(markdown.row(model, *(spread(of(model, last, score)) for score in scores)))

    print("\n" + markdown.header("gain in mAP by label", "here", "the source"))
    for model, theirs in SOURCE.items():
        if {"K = 0", model} <= set(models):
            ours = gain(of(model, last, "unimodal"), of("K = 0", last, "unimodal"))
            print(markdown.row(f"unimodal, {model} over K = 0", ours, f"{theirs:+.3f}"))
    for query, (before, after) in TUNED.items():
        for model in models:
            theirs = f"{after - before:+.3f}" if model == "K = 10" else ""
            ours = gain(of(model, last, query), of(model, first, query))
            print(markdown.row(f"{query}, {model}, by fine-tuning", ours, theirs))


def main():
    parser = argparse.ArgumentParser(
        prog="python -m bench.cross_modal_retrieval",
        description=cross_modal_retrieval.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", choices=DATA, default="movies")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("cross-modal-retrieval.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    rows = [row for row in map(json.loads, lines) if row["data"] == options.data and row["seed"] < options.seeds]
    done = {row["seed"] for row in rows}
    todo = [seed for seed in range(options.seeds) if seed not in done]
    with tqdm(total=len(todo) * len(MODELS) * 2, unit="table cell", disable=None) as bar:
        for seed in todo:
            new = []
            for row in study(DATA[options.data](seed), seed, SIZES[options.data]):
                new.append({"data": options.data, "seed": seed} | row)
                bar.update("nll" in row)
            rows += new  # a seed is written when it is complete
            with options.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in new)
    tables(rows)


if __name__ == "__main__":
    main()
