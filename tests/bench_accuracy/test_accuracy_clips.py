"""Small folders in the forms in which CREMA-D, Kinetics-Sounds, AVE and VGGSound are prepared."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from balanced_grad.demo._data import DemoError
from bench.accuracy._clip_lists import VAL, part_of
from bench.accuracy._clips import SIDE, SOURCES, frames_of
from bench.accuracy._data import load
from bench.accuracy._methods import BASELINE
from bench.accuracy._train import train

LABELS = {
    "crema-d": ("ANG", "NEU"),
    "kinetics-sounds": ("2", "10"),
    "ave": ("Horse", "Female speech, woman speaking"),
    "vggsound": ("yodelling", "dog barking, howling"),
}
SECONDS, EVENT = 3, (1, 2)
RATE = 8000


def listed(name: str, folder: Path) -> Callable[[int, str, str], tuple[str, str, Path, Path]]:
    """From number, label and part of a clip to its list, its line there, its sound and the folder of its pictures."""

    def crema(i: int, label: str, part: str) -> tuple[str, str, Path, Path]:
        return f"{part}.csv", f"clip{i}_0,{label}", folder / f"AudioWAV/clip{i}_0", folder / f"Image-01-FPS/clip{i}_0"

    def kinetics(i: int, label: str, part: str) -> tuple[str, str, Path, Path]:
        return f"my_{part}.txt", f"clip{i}_0,10,{label}", folder / f"audio/clip{i}_0", folder / f"visual/clip{i}_0"

    def ave(i: int, label: str, part: str) -> tuple[str, str, Path, Path]:
        part = "val" if part == "train" and part_of(f"clip{i}") == VAL else part
        line = "&".join([label, f"clip{i}", "good", *map(str, EVENT)])
        return f"{part}Set.txt", line, folder / f"audio/clip{i}", folder / f"visual/clip{i}"

    def vggsound(i: int, label: str, part: str) -> tuple[str, str, Path, Path]:
        name = f"clip{i}_{i if i % 2 else f'{i:06}'}"
        sound, pictures = f"{part}-audios/{part}-set", f"{part}-videos/{part}-set-img/Image-01-FPS"
        return "vggsound.csv", f'clip{i},{i},"{label}",{part}', folder / sound / name, folder / pictures / f"{name}.mp4"

    return {"crema-d": crema, "kinetics-sounds": kinetics, "ave": ave, "vggsound": vggsound}[name]


def write(root, name, parts):
    """Class 0 is a low tone and a dark picture, class 1 a high one and a light one, in the second of the event.

    In the seconds around it, which only AVE cuts off, an event of AVE sounds and looks like the other class.
    """
    folder, lists = root / name, {}
    place = listed(name, folder)
    for i, part in enumerate(parts):
        kind = i % 2
        file, line, sound, pictures = place(i, LABELS[name][kind], part)
        lists.setdefault(file, []).append(line)
        sound.parent.mkdir(parents=True, exist_ok=True)
        pictures.mkdir(parents=True)
        kinds = [kind if name != "ave" or second == EVENT[0] else 1 - kind for second in range(SECONDS)]
        time = np.arange(RATE) / RATE
        wave = np.concatenate([np.sin(2 * np.pi * (200, 1500)[k] * time) for k in kinds])
        wavfile.write(f"{sound}.wav", RATE, (30000 * wave).astype(np.int16))
        for second, k in enumerate(kinds):
            Image.fromarray(np.full((20, 30, 3), 40 + 150 * k, np.uint8)).save(pictures / f"{second}.jpg")
    _, nowhere, *_ = place(10_000, LABELS[name][0], "test")
    for file, lines in lists.items():
        (folder / file).write_text("\n".join([*lines, nowhere]) + "\n", encoding="utf-8-sig")


@pytest.fixture
def sixty(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))

    def make(name):
        write(tmp_path, name, ["test" if i % 3 == 2 else "train" for i in range(60)])
        return load(name)

    return make


@pytest.mark.parametrize("name", list(SOURCES))
def test_loads_and_trains(sixty, name):
    data = sixty(name)
    assert data.shapes == {"audio": (1, SIDE, SIDE), "image": (1, SIDE, SIDE)}
    assert (len(data.train) + len(data.val), len(data.test)) == (40, 20)
    assert len(data.val) == sum(part_of(f"clip{i}") == VAL for i in range(60) if i % 3 != 2)
    low, high = sorted(LABELS[name], key=lambda label: (len(label), label))  # the order of classes
    light = data.test.inputs["image"].mean((1, 2, 3)) > 0
    assert light.tolist() == [(low, high)[label] == LABELS[name][1] for label in data.test.labels]
    peak = data.test.inputs["audio"].mean((1, 3)).argmax(1)
    assert ((peak > SIDE / 4) == light).all()
    assert train(data, BASELINE, BASELINE.settings("sgd", 0), "sgd", 0, 1, True).score[0] >= 0


def test_another_side(sixty):
    small = sixty("crema-d")
    other = load("crema-d:16")
    assert other.shapes == {"audio": (1, 16, 16), "image": (1, 16, 16)}
    assert other.test.labels.tolist() == small.test.labels.tolist()
    with pytest.raises(DemoError, match="crema-d:224"):
        load("crema-d:large")


def test_a_clip_of_ave_that_is_listed_twice_is_left_out(sixty, tmp_path):
    before = sixty("ave")
    path = tmp_path / "ave" / "valSet.txt"
    path.write_text("Category&VideoID&Quality&StartTime&EndTime\n" + path.read_text() + "Horse&clip2&good&0&1\n")
    after = load("ave")
    assert [len(s) for s in (after.train, after.val)] == [len(s) for s in (before.train, before.val)]
    assert len(after.test) == len(before.test) - 1


def test_an_event_after_the_last_picture_has_all_of_them(tmp_path):
    write(tmp_path, "ave", ["train"])
    (clip, *_) = SOURCES["ave"].clips(complete(tmp_path / "ave"))
    assert [frame.name for frame in frames_of(clip)] == ["1.jpg"]
    assert len(frames_of(clip._replace(seconds=(7, 9)))) == SECONDS


def complete(folder):
    """With the lists that it lacks, empty."""
    for file in ("trainSet.txt", "valSet.txt", "testSet.txt"):
        (folder / file).touch()
    return folder


def test_a_split_of_another_name_is_refused(sixty, tmp_path):
    sixty("vggsound")
    with (tmp_path / "vggsound" / "vggsound.csv").open("a") as file:
        file.write("clip,0,yodelling,validation\n")
    with pytest.raises(DemoError, match="is 'validation'; give train or test"):
        load("vggsound")


def test_pieces_of_one_recording_stay_together_and_a_tenth_validates(tmp_path):
    (tmp_path / "train.csv").write_text("".join(f"recording{i // 5}_{i},ANG\n" for i in range(5000)))
    (tmp_path / "test.csv").touch()
    splits = [clip.split for clip in SOURCES["crema-d"].clips(tmp_path)]
    assert all(len(set(splits[i : i + 5])) == 1 for i in range(0, 5000, 5))
    assert 300 < splits.count(VAL) < 700


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))
    with pytest.raises(DemoError, match=r"test\.csv"):
        load("crema-d")
    write(tmp_path, "crema-d", ["train"])
    (tmp_path / "crema-d" / "test.csv").touch()
    with pytest.raises(DemoError, match="no clips with sound and pictures"):
        load("crema-d")
