"""Real data sets from a folder: ``DIR/NAME/NAME.npz`` with ``NAME.json`` beside it.

Two forms are read. The plain form holds one array per modality listed in the json's ``modalities``,
``label``, and ``split`` (0 train, 1 val, 2 test). Where items belong together, an array ``group`` or ``video_id`` says
which do, so that intervals count groups. The paired form (``avmnist``) holds arrays per split, whose
recordings are shared by several items; a variant of it is written behind a colon, image then audio:
``avmnist:clean,noisy``.
"""

import json
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from balanced_grad.demo._data import SPLITS, Array, Dataset, DemoError, build

IMAGES = {"clean": "image", "pca25": "image_pca25"}
SOUNDS = ("clean", "noisy")
GROUPS = {"group": "groups", "video_id": "videos"}  # arrays, and what they count
RESERVED = {"joint", "label", "split", *GROUPS}


def available(root: Path) -> list[str]:
    """List the data sets that lie in a folder."""
    return sorted(path.parent.name for path in root.glob("*/*.npz") if path.stem == path.parent.name)


def load_folder(root: Path, request: str) -> Dataset:
    """Read the data set ``NAME`` or ``NAME:VARIANT`` of a folder."""
    name, _, variant = request.partition(":")
    path = root / name / f"{name}.npz"
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = {key: archive[key] for key in archive.files}
        about = json.loads(path.with_suffix(".json").read_text())
    except (OSError, EOFError, ValueError, BadZipFile) as error:
        raise DemoError(f"cannot read the data set {name!r}: {error}") from error
    title = str(about.get("title", name))
    if "train_recording" in arrays:
        return _paired(request, title, arrays, variant or "clean,noisy")
    if variant:
        raise DemoError(f"{name!r} has no variants; ask for --dataset {name}")
    return _plain(name, title, arrays, list(about.get("modalities", ())))


def _plain(name: str, title: str, arrays: dict[str, Array], modalities: list[str]) -> Dataset:
    missing = [key for key in ("label", "split", *modalities) if key not in arrays]
    if missing or not modalities or RESERVED.intersection(modalities):
        raise DemoError(
            f"{name}.npz needs the arrays 'label' and 'split' and those that {name}.json lists under"
            f" 'modalities' (here: {modalities}); missing: {missing}; not free as names: {sorted(RESERVED)}"
        )
    split = arrays["split"]
    views = {modality: arrays[modality] for modality in modalities}
    wrong = [key for key, x in views.items() if x.ndim not in (2, 3) or len(x) != len(split)]
    if wrong or not all((split == code).any() for code in range(len(SPLITS))):
        raise DemoError(
            f"{name}.npz: every modality is (items, features) or (items, height, width), as long as 'split',"
            f" and 'split' holds 0, 1 and 2 (train, val, test); wrong: {wrong or 'split'}"
        )
    groups = next(((kind, arrays[key]) for key, kind in GROUPS.items() if key in arrays), None)
    return build(name, title, views, arrays["label"], split, groups)


def _paired(request: str, title: str, arrays: dict[str, Array], variant: str) -> Dataset:
    image, _, audio = variant.partition(",")
    if image not in IMAGES or audio not in SOUNDS:
        name = request.partition(":")[0]
        possible = ", ".join(f"{name}:{i},{a}" for i in IMAGES for a in SOUNDS)
        raise DemoError(f"unknown variant {variant!r} of {name}; possible: {possible}")

    def sound(split: str) -> Array:
        recording, version = arrays[f"{split}_recording"], arrays[f"{split}_version"]
        if audio == "clean":
            return arrays[f"{split}_audio"][recording]
        return arrays[f"{split}_audio_noisy"][recording, version]

    views = {
        "image": np.concatenate([arrays[f"{split}_{IMAGES[image]}"] for split in SPLITS]),
        "audio": np.concatenate([sound(split) for split in SPLITS]),
    }
    labels = np.concatenate([arrays[f"{split}_label"] for split in SPLITS])
    codes = np.repeat(range(len(SPLITS)), [len(arrays[f"{split}_label"]) for split in SPLITS])
    heard = [arrays[f"{split}_audio_speaker"][arrays[f"{split}_recording"]] for split in SPLITS]
    speakers = "speakers", np.concatenate(heard)
    return build(request, f"{title}, {image} images, {audio} audio", views, labels, codes, speakers)
