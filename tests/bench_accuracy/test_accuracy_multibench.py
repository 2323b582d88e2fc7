"""A small folder in the form of MultiBench's AV-MNIST, and the networks and recipe that go with it."""

import sys

import numpy as np
import pytest
import torch

from balanced_grad.demo._data import DemoError
from balanced_grad.models import ProductOfExperts, expert_subsets
from bench import experts, experts_controls
from bench._encoders import PIECE, lenet, stages, width
from bench._experts_tasks import AVMNISTTask, real
from bench.accuracy._data import load
from bench.accuracy._methods import BASELINE
from bench.accuracy._multibench import AVMNIST, SIDES
from bench.accuracy._train import train

ITEMS = {"train": 60, "test": 20}


def arrays(seed=0):
    """A digit lights one row of the image, and a band of the spectrogram; pixels are 0 to 255."""
    rng = np.random.default_rng(seed)
    out = {}
    for part, count in ITEMS.items():
        labels = np.arange(count) % 10
        image, audio = rng.integers(0, 60, (count, 28, 28)), rng.integers(0, 60, (count, 112, 112))
        for i, label in enumerate(labels):
            image[i, 2 * label + 4] = 255
            audio[i, 10 * label : 10 * label + 10] += 60
        out[f"image/{part}_data"] = image.reshape(count, 784).astype(float)  # as there: rows of numbers, and bytes
        out[f"audio/{part}_data"] = audio.astype(np.uint8)
        out[f"{part}_labels"] = labels.astype(float)
    return out


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))

    def to(**changes):
        for name, x in (arrays() | changes).items():
            path = tmp_path / AVMNIST / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, x)

    return to


def test_values_are_those_of_the_files_by_255_and_the_last_twelfth_validates(write):
    write()
    data, files = load(AVMNIST), arrays()
    assert data.shapes == {m: (1, side, side) for m, side in SIDES.items()}
    assert [len(split) for split in (data.train, data.val, data.test)] == [55, 5, 20]
    for modality in SIDES:
        whole = torch.cat([split.inputs[modality] for split in (data.train, data.val)]).flatten(1)
        np.testing.assert_allclose(whole, files[f"{modality}/train_data"].reshape(60, -1) / 255, rtol=1e-6)
        assert whole.dtype == torch.float32
    assert data.val.labels.tolist() == [i % 10 for i in range(55, 60)]
    assert train(data, BASELINE, BASELINE.settings("sgd", 0), "sgd", 0, 1, True).score[0] >= 0


def test_square_pictures_are_read_like_rows(write):
    write()
    rows = load(AVMNIST).test.inputs["image"]
    write(**{"image/test_data": arrays()["image/test_data"].reshape(-1, 28, 28)})
    assert torch.equal(load(AVMNIST).test.inputs["image"], rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio/train_data": np.zeros((60, 40, 40))}, r"audio/train_data\.npy has the shape.*112 x 112"),
        ({"test_labels": np.full(20, 10)}, "a digit from 0 to 9"),
        ({f"{m}/train_data": np.zeros((11, side, side)) for m, side in SIDES.items()} | {"train_labels": np.zeros(11)},
         "12 or more are needed"),
        ({"train_labels": np.array([object()])}, "cannot read"),
    ],
)  # fmt: skip
def test_files_of_another_form_are_refused(write, change, message):
    write(**change)
    with pytest.raises(DemoError, match=message):
        load(AVMNIST)


def test_a_missing_file_is_named(write, tmp_path):
    write()
    (tmp_path / AVMNIST / "audio" / "test_data.npy").unlink()
    with pytest.raises(DemoError, match=r"test_data\.npy"):
        load(AVMNIST)


@pytest.mark.parametrize(("side", "channels", "count"), [(28, 6, 48), (112, 6, 192), (112, 3, 96), (40, 3, 48)])
def test_lenet_ends_at_one_pixel_and_has_the_published_number_of_features(side, channels, count):
    assert width(side, channels) == count
    assert lenet(side, channels)(torch.randn(2, 1, side, side)).shape == (2, count)
    convolutions = [m for m in lenet(side, channels) if isinstance(m, torch.nn.Conv2d)]
    assert [c.kernel_size[0] for c in convolutions] == [5] + [3] * (stages(side) - 1)


def test_evaluation_in_pieces_is_that_of_the_whole():
    model, x = lenet(16, 2).eval(), torch.randn(PIECE + 3, 1, 16, 16)
    with torch.no_grad():
        pieces = model(x)
    torch.testing.assert_close(pieces, model(x).detach())


def test_rates_and_sizes_of_the_experts(write):
    write()
    task = real(AVMNIST, 0)
    keys = expert_subsets(task.splits["train"][0])
    product = ProductOfExperts({key: task.make(key) for key in keys})
    sizes = [expert.head[0].in_features for expert in product.experts]
    assert sizes == [24, 96, 240]  # MultiBench's heads: 8 and 32 times 3 channels, 40 times 6
    assert task.make(keys[-1], low_rank=True).fusion.rank == 40
    assert task.alone(keys) == {"rates": {"image+audio": 10}}
    assert (task.together(intra=True), task.together(intra=False)) == ({"lr": 0.1}, {"lr": 0.01})


def test_the_benches_of_experts_run_on_it(write, monkeypatch, capsys):
    write()
    for size in ("CHANNELS", "JOINT_CHANNELS", "PRODUCTS", "RANK"):
        monkeypatch.setattr(AVMNISTTask, size, 1)
    monkeypatch.setattr(experts, "BALANCERS", {"": None})
    for bench, row in ((experts, "| I2M2, pretrained |"), (experts_controls, "| inter, low rank |")):
        monkeypatch.setattr(sys, "argv", ["bench", "--datasets", AVMNIST, "--seeds", "1", "--epochs", "1"])
        bench.main()
        assert row in capsys.readouterr().out
