"""CREMA-D and Kinetics-Sounds in the form that OGM-GE's released code reads: lists, sound files, folders of frames.

``DIR/crema-d``: ``train.csv`` and ``test.csv`` with a clip and its emotion per line, ``AudioWAV/CLIP.wav``,
``Image-01-FPS/CLIP/*.jpg``. ``DIR/kinetics-sounds``: ``my_train.txt`` and ``my_test.txt`` with a clip, its length and
its class per line, ``audio/CLIP.wav``, ``visual/CLIP/*.jpg``. Listed clips without files are left out, as there.

Made small for small networks: of the sound the log spectrogram, of the pictures the middle one in grey, both
``SIDE x SIDE``. Accuracies are therefore not those of papers, whose networks are ResNets. There is no published
validation split: a tenth of the training clips serves, chosen by a checksum of the clip's name without its last part,
so that pieces of one recording stay together.
"""

import csv
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from balanced_grad.demo._data import Array, Dataset, DemoError, build

SIDE = 64
WINDOW = 512  # samples of a spectrum, as published


class Form(NamedTuple):
    """Names in the folder of a set."""

    title: str
    train: str
    test: str
    audio: str
    visual: str


FORMS = {
    "crema-d": Form("CREMA-D, six emotions", "train.csv", "test.csv", "AudioWAV", "Image-01-FPS"),
    "kinetics-sounds": Form("Kinetics-Sounds, 31 actions", "my_train.txt", "my_test.txt", "audio", "visual"),
}


def load_clips(root: Path, name: str) -> Dataset:
    """Read every clip of a set; this takes minutes for a whole one."""
    form, folder = FORMS[name], root / name
    rows = [(clip, label, 2) for clip, label in listed(folder / form.test)]
    rows += [(clip, label, int(validates(clip))) for clip, label in listed(folder / form.train)]
    found = [row for row in rows if sound_of(folder, form, row[0]).exists() and frames_of(folder, form, row[0])]
    splits = np.array([split for *_, split in found])
    if set(splits) != {0, 1, 2}:
        raise DemoError(f"{folder} has no clips with sound and pictures for each of train, validation and test")
    classes = sorted({label for _, label, _ in found}, key=lambda label: (len(label), label))
    labels = np.array([classes.index(label) for _, label, _ in found])
    views = {
        "audio": np.stack([spectrogram(sound_of(folder, form, clip)) for clip, *_ in found]),
        "image": np.stack([picture(frames_of(folder, form, clip)) for clip, *_ in found]),
    }
    return build(name, form.title, views, labels, splits)


def listed(path: Path) -> list[tuple[str, str]]:
    """Clip and class: the first and the last column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [(row[0], row[-1].strip()) for row in csv.reader(file) if len(row) > 1]
    except OSError as error:
        raise DemoError(f"cannot read the list {path}: {error.strerror}") from error


def validates(clip: str) -> bool:
    """Whether a training clip serves for validation."""
    return zlib.crc32(clip.rpartition("_")[0].encode()) % 10 == 0


def sound_of(folder: Path, form: Form, clip: str) -> Path:
    return folder / form.audio / f"{clip}.wav"


def frames_of(folder: Path, form: Form, clip: str) -> list[Path]:
    return sorted((folder / form.visual / clip).glob("*.jpg"))


def spectrogram(path: Path) -> Array:
    """Log magnitudes of the whole clip, frequency by time, averaged to ``(SIDE, SIDE)``."""
    from scipy.io import wavfile
    from scipy.signal import stft

    _, samples = wavfile.read(path)
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / np.iinfo(samples.dtype).max
    mono = samples.reshape(len(samples), -1).mean(1)
    _, _, spectrum = stft(np.pad(mono, (0, max(0, WINDOW - len(mono)))), nperseg=WINDOW)
    log = torch.from_numpy(np.log(np.abs(spectrum) + 1e-7)).float()
    return torch.nn.functional.adaptive_avg_pool2d(log[None], SIDE)[0].numpy()


def picture(frames: list[Path]) -> Array:
    """The middle frame in grey, bytes ``(SIDE, SIDE)``."""
    from PIL import Image

    with Image.open(frames[len(frames) // 2]) as image:
        return np.asarray(image.convert("L").resize((SIDE, SIDE)))
