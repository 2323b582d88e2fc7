"""Visual question answering from annotations as VQA v2 publishes them, with features of a frozen backbone given.

``DIR/vqa/``: ``train.json``, ``val.json`` and ``test.json``, each ``{"annotations": [{"question_id": 1, "answers":
[{"answer": "yes"}, ...]}, ...]}`` with the answers of ten people; any other ``NAME.json`` there is one more test part,
such as the nine of VQA-VS that are out of distribution. ``features.npz`` (this form is ours): ``question_id`` ``(n,)``
and one array ``(n, d)`` per modality, such as ``image`` and ``text``, the tokens that a backbone ends with.

What can be answered is the answer most given to at least ``least`` questions for training (published for VQA v2: 9,
which leaves 3129). Our reading: capitals and spaces around an answer do not count; of answers given equally often the
first counts.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from balanced_grad.demo._data import DemoError
from bench._metrics import agreement

SPLITS = ("train", "val", "test")
ID = "question_id"
T = TypeVar("T")
Name = TypeVar("Name", int, str)


class Questions(NamedTuple):
    """One part: features ``(n, d)`` by modality, what people answered, and of known answers place and score."""

    inputs: dict[str, Tensor]
    answers: list[list[str]]
    places: Tensor
    scores: Tensor

    def targets(self, rows: Tensor, classes: int) -> Tensor:
        """Score of each answer that can be given, ``(rows, classes)`` in [0, 1]."""
        return torch.zeros(len(rows), classes).scatter_add_(1, self.places[rows], self.scores[rows])


class Annotated(NamedTuple):
    """All parts, and the answers that can be given."""

    parts: dict[str, Questions]
    vocabulary: list[str]


def load_vqa(folder: Path, least: int = 9) -> Annotated:
    """Read annotations and features of every part."""
    given = read_parts(folder, SPLITS, annotations)
    common = Counter(Counter(answers).most_common(1)[0][0] for answers in given["train"].values())
    vocabulary = [answer for answer, count in common.most_common() if count >= least]
    if len(vocabulary) < 2:
        raise DemoError(
            f"{folder / 'train.json'} has {len(vocabulary)} answers to {least} questions or more; lower that"
        )
    features, row_of = read_features(folder / "features.npz", ID, int)
    parts = {}
    for part, questions in given.items():
        rows = rows_of(questions, row_of, ID, part)
        answers = list(questions.values())
        parts[part] = Questions({m: x[rows] for m, x in features.items()}, answers, *scored(answers, vocabulary))
    return Annotated(parts, vocabulary)


def read_parts(folder: Path, splits: tuple[str, ...], read: Callable[[Path], T]) -> dict[str, T]:
    """What ``read`` makes of each ``NAME.json``: the splits, which must be there, and any further parts."""
    found = {path.stem: path for path in sorted(folder.glob("*.json"))}
    missing = [split for split in splits if split not in found]
    if missing:
        raise DemoError(f"{folder} lacks {', '.join(f'{split}.json' for split in missing)}")
    return {part: read(found[part]) for part in (*splits, *(part for part in found if part not in splits))}


def annotations(path: Path) -> dict[int, list[str]]:
    """Question -> the answers of the people asked."""
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        found = {
            int(one[ID]): [given["answer"].strip().lower() for given in one["answers"]]
            for one in content["annotations"]
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DemoError(f"{path} is not in the form of VQA v2's annotations: {error!r}") from error
    if not found or not all(found.values()):
        raise DemoError(f"{path} needs questions, each with an answer")
    return found


def read_features(path: Path, key: str, kind: Callable[[Any], Name]) -> tuple[dict[str, Tensor], dict[Name, int]]:
    """Features by modality, and the row of each item, which ``key`` names."""
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise DemoError(f"cannot read {path}: {error}") from error
    names = arrays.pop(key, np.zeros(0))
    if len(arrays) < 2 or any(x.ndim != 2 or len(x) != len(names) for x in arrays.values()):
        shapes = {name: x.shape for name, x in arrays.items()}
        raise DemoError(f"{path} needs {key} (n,) and two modalities (n, d) or more; here {len(names)} and {shapes}")
    features = {name: torch.from_numpy(x.astype(np.float32)) for name, x in arrays.items()}
    return features, {kind(name): row for row, name in enumerate(names)}


def rows_of(given: Iterable[Name], row_of: Mapping[Name, int], key: str, part: str) -> Tensor:
    """Rows ``(n,)`` of the features of these items."""
    unknown = [name for name in given if name not in row_of]
    if unknown:
        raise DemoError(f"features.npz has no {key} {unknown[0]}, nor {len(unknown) - 1} others of {part}.json")
    return torch.tensor([row_of[name] for name in given])


def scored(answers: list[list[str]], vocabulary: list[str]) -> tuple[Tensor, Tensor]:
    """Places in the vocabulary ``(n, k)`` of what was answered, and scores, 0 where there are fewer than ``k``."""
    place = {answer: i for i, answer in enumerate(vocabulary)}
    known = [[(place[one], agreement(one, given)) for one in dict.fromkeys(given) if one in place] for given in answers]
    most = max(1, *map(len, known)) if known else 1
    padded = [row + [(0, 0.0)] * (most - len(row)) for row in known]
    return (
        torch.tensor([[i for i, _ in row] for row in padded]),
        torch.tensor([[score for _, score in row] for row in padded]),
    )
