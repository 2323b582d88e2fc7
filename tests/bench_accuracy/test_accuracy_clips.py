"""Small folders in the form in which CREMA-D and Kinetics-Sounds are prepared."""

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from balanced_grad.demo._data import DemoError
from bench.accuracy._clips import FORMS, SIDE, validates
from bench.accuracy._data import load
from bench.accuracy._methods import BASELINE
from bench.accuracy._train import train

LABELS = {"crema-d": ("ANG", "NEU"), "kinetics-sounds": ("2", "10")}


def write(root, name, clips):
    """Class 0 is a low tone and a dark picture, class 1 a high one and a light one."""
    form, folder = FORMS[name], root / name
    (folder / form.audio).mkdir(parents=True)
    rows = {form.train: [], form.test: []}
    for i, (clip, part) in enumerate(clips):
        kind = i % 2
        wave = np.sin(2 * np.pi * (400, 3000)[kind] * np.arange(8000) / 16000)
        wavfile.write(folder / form.audio / f"{clip}.wav", 16000, (30000 * wave).astype(np.int16))
        (folder / form.visual / clip).mkdir(parents=True)
        for frame in range(2):
            grey = np.full((20, 30, 3), 40 + 150 * kind, np.uint8)
            Image.fromarray(grey).save(folder / form.visual / clip / f"{frame}.jpg")
        length = [] if name == "crema-d" else ["10"]
        rows[part].append(",".join([clip, *length, LABELS[name][kind]]))
    for file, lines in rows.items():
        (folder / file).write_text("\n".join([*lines, f"nowhere_0,{LABELS[name][0]}"]) + "\n", encoding="utf-8-sig")


@pytest.mark.parametrize("name", list(FORMS))
def test_loads_and_trains(tmp_path, monkeypatch, name):
    form = FORMS[name]
    write(tmp_path, name, [(f"clip{i}_0", form.test if i % 3 == 2 else form.train) for i in range(60)])
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))
    data = load(name)
    assert data.shapes == {"audio": (1, SIDE, SIDE), "image": (1, SIDE, SIDE)}
    assert (len(data.train) + len(data.val), len(data.test)) == (40, 20)
    assert len(data.val) == sum(validates(f"clip{i}_0") for i in range(60) if i % 3 != 2)
    light = data.test.inputs["image"].mean((1, 2, 3)) > 0.5
    assert light.long().tolist() == data.test.labels.tolist()  # classes are in the order of their names or numbers
    peak = data.test.inputs["audio"].mean((1, 3)).argmax(1)
    assert ((peak > SIDE / 4) == light).all()
    assert train(data, BASELINE, BASELINE.settings("sgd", 0), "sgd", 0, 1, True).score[0] >= 0


def test_pieces_of_one_recording_stay_together():
    assert len({validates(f"recording_{i}") for i in range(50)}) == 1
    assert 60 < sum(validates(f"{i}_0") for i in range(1000)) < 140


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))
    with pytest.raises(DemoError, match=r"test\.csv"):
        load("crema-d")
    write(tmp_path, "crema-d", [("clip_0", "train.csv")])
    with pytest.raises(DemoError, match="no clips with sound and pictures"):
        load("crema-d")
