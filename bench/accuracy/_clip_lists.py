"""Which clips a published set has, where its sound and pictures lie, and which part of the set each belongs to.

``DIR/crema-d``: ``train.csv`` and ``test.csv`` with a clip and its emotion per line, ``AudioWAV/CLIP.wav``,
``Image-01-FPS/CLIP/*.jpg``. ``DIR/kinetics-sounds``: ``my_train.txt`` and ``my_test.txt`` with a clip, its length and
its class per line, ``audio/CLIP.wav``, ``visual/CLIP/*.jpg``. Both as OGM-GE's released code reads them.

``DIR/ave``: ``trainSet.txt``, ``valSet.txt``, ``testSet.txt`` as the set is published, with
``category&clip&quality&start&end`` per line, seconds of the event; ``audio/CLIP.wav`` and ``visual/CLIP/*.jpg``, a
picture per second, as OGM-GE's scripts prepare them from the videos. Sound and pictures are cut to the event, as
``-SE`` files of later code are; clips listed more than once have no one class or part, and are left out (our reading:
OGM-GE's code drops those listed twice in one part).

``DIR/vggsound``: ``vggsound.csv`` as published, with ``clip,start,label,split`` per line, and per split what OGM-GE's
code reads: ``train-audios/train-set/CLIP_START.wav`` and ``train-videos/train-set-img/Image-01-FPS/CLIP_START.mp4``, a
folder of ``*.jpg``; likewise ``test``. The start may be written with six digits, as the set's own files are named.

CREMA-D, Kinetics-Sounds and VGGSound have no published validation split: a tenth of the training clips serves, chosen
by a checksum of the recording's name, so that pieces of one recording stay together.
"""

import csv
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from balanced_grad.demo._data import DemoError

TRAIN, VAL, TEST = range(3)


class Clip(NamedTuple):
    """Its class and part, its sound file, the folder of its pictures, and the seconds that count; None: all."""

    label: str
    split: int
    sound: Path
    pictures: Path
    seconds: tuple[int, int] | None = None


class Form(NamedTuple):
    """Names in the folder of a set whose list has a clip first and its class last."""

    train: str
    test: str
    audio: str
    visual: str

    def __call__(self, folder: Path) -> Iterator[Clip]:
        for file, test in ((self.test, True), (self.train, False)):
            for clip, *_, label in table(folder / file, ",", 2):
                split = TEST if test else part_of(clip.rpartition("_")[0])
                sound, pictures = folder / self.audio / f"{clip}.wav", folder / self.visual / clip
                yield Clip(label, split, sound, pictures)


def ave(folder: Path) -> Iterator[Clip]:
    """Clips of AVE that are listed once."""
    files = {"trainSet.txt": TRAIN, "valSet.txt": VAL, "testSet.txt": TEST}
    rows = [(split, row) for file, split in files.items() for row in table(folder / file, "&", 5)]
    times = Counter(clip for _, (_, clip, *_) in rows)
    for split, (label, clip, _, start, end, *_) in rows:
        if times[clip] == 1 and start.isdecimal():  # a header has words there
            sound, pictures = folder / "audio" / f"{clip}.wav", folder / "visual" / clip
            yield Clip(label, split, sound, pictures, (int(start), int(end)))


def vggsound(folder: Path) -> Iterator[Clip]:
    """Clips of VGGSound, each of a recording of its own."""
    for recording, start, label, part, *_ in table(folder / "vggsound.csv", ",", 4):
        if not start.isdecimal():
            continue  # a header
        if part not in ("train", "test"):
            raise DemoError(f"{folder / 'vggsound.csv'}: the split of {recording} is {part!r}; give train or test")
        sounds = folder / f"{part}-audios" / f"{part}-set"
        name = f"{recording}_{start}"
        if not (sounds / f"{name}.wav").exists():
            name = f"{recording}_{start:0>6}"
        pictures = folder / f"{part}-videos" / f"{part}-set-img" / "Image-01-FPS" / f"{name}.mp4"
        yield Clip(label, TEST if part == "test" else part_of(recording), sounds / f"{name}.wav", pictures)


def table(path: Path, delimiter: str, columns: int) -> list[list[str]]:
    """The lines with so many columns or more."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter)]
    except OSError as error:
        raise DemoError(f"cannot read the list {path}: {error.strerror}") from error
    return [row for row in rows if len(row) >= columns]


def part_of(recording: str) -> int:
    """Whether a recording for training serves for validation."""
    return VAL if zlib.crc32(recording.encode()) % 10 == 0 else TRAIN
