"""CREMA-D, Kinetics-Sounds, AVE and VGGSound from the lists, sound files and folders of frames of published code.

The folders' forms: ``bench.accuracy._clip_lists``. Listed clips without files are left out, as in that code.

Made small for small networks: of the sound the log spectrogram, of the pictures the middle one in grey, both
``SIDE x SIDE``, or of another side, written behind a colon: ``crema-d:224``. Published code has colours, three frames
and crops drawn anew per epoch, so accuracies are not those of papers, whatever the network.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from balanced_grad.demo._data import Array, Dataset, DemoError, build
from bench.accuracy._clip_lists import Clip, Form, ave, vggsound

SIDE = 64
WINDOW = 512  # samples of a spectrum, as published


class Source(NamedTuple):
    """A set's title, and what lists its clips."""

    title: str
    clips: Callable[[Path], Iterable[Clip]]


SOURCES = {
    "crema-d": Source("CREMA-D, six emotions", Form("train.csv", "test.csv", "AudioWAV", "Image-01-FPS")),
    "kinetics-sounds": Source("Kinetics-Sounds, 31 actions", Form("my_train.txt", "my_test.txt", "audio", "visual")),
    "ave": Source("AVE, 28 events", ave),
    "vggsound": Source("VGGSound, 309 classes", vggsound),
}


def load_clips(root: Path, request: str) -> Dataset:
    """Read every clip of a set; this takes minutes; all of VGGSound, in some 30 GB of memory, longer."""
    name, _, variant = request.partition(":")
    if variant and not (variant.isdecimal() and int(variant) >= 8):
        raise DemoError(f"unknown variant {variant!r} of {name}; give the side of its pictures, such as {name}:224")
    side = int(variant or SIDE)
    folder, source = root / name, SOURCES[name]
    found = [(clip, frames) for clip in source.clips(folder) if clip.sound.exists() and (frames := frames_of(clip))]
    splits = np.array([clip.split for clip, _ in found])
    if set(splits) != {0, 1, 2}:
        raise DemoError(f"{folder} has no clips with sound and pictures for each of train, validation and test")
    classes = sorted({clip.label for clip, _ in found}, key=lambda label: (len(label), label))
    labels = np.array([classes.index(clip.label) for clip, _ in found])
    views = {
        "audio": np.stack([spectrogram(clip.sound, side, clip.seconds) for clip, _ in found]),
        "image": np.stack([picture(frames, side) for _, frames in found]),
    }
    return build(request, source.title, views, labels, splits)


def frames_of(clip: Clip) -> list[Path]:
    """Its pictures in order, one per second; those of the event, where it has some then."""
    frames = sorted(clip.pictures.glob("*.jpg"))
    return (frames[slice(*clip.seconds)] if clip.seconds else frames) or frames


def spectrogram(path: Path, side: int, seconds: tuple[int, int] | None = None) -> Array:
    """Log magnitudes of a clip, or of some seconds of it, frequency by time, averaged to ``(side, side)``."""
    from scipy.io import wavfile
    from scipy.signal import stft

    rate, samples = wavfile.read(path)
    if seconds:
        start, end = (rate * second for second in seconds)
        samples = samples[start:end] if len(samples) > start else samples
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / np.iinfo(samples.dtype).max
    mono = samples.reshape(len(samples), -1).mean(1)
    _, _, spectrum = stft(np.pad(mono, (0, max(0, WINDOW - len(mono)))), nperseg=WINDOW)
    log = torch.from_numpy(np.log(np.abs(spectrum) + 1e-7)).float()
    return torch.nn.functional.adaptive_avg_pool2d(log[None], side)[0].numpy()


def picture(frames: list[Path], side: int) -> Array:
    """The middle frame in grey, bytes ``(side, side)``."""
    from PIL import Image

    with Image.open(frames[len(frames) // 2]) as image:
        return np.asarray(image.convert("L").resize((side, side)))
