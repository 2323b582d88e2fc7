"""Labels in the form of NLVR2, small and generated: the loader and the bench."""

import json
import math
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")
pytest.importorskip("tqdm", reason="pip install 'balanced-grad[demo]'")

from balanced_grad.demo._data import DemoError
from bench import experts_nlvr2
from bench.experts_nlvr2 import RECIPE, generated, judged, load_nlvr2, study

QUICK = RECIPE | {"lr": 1e-2, "epochs": 6}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """The generated pairs as files, with one more test part."""
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))
    folder = tmp_path / "nlvr2"
    folder.mkdir()

    def to(drop=(), **changed):
        parts = generated()
        parts["balanced_test1"] = parts["test1"]
        features = {"identifier": [], "image": [], "text": []}
        for part, pairs in parts.items():
            names = [f"{part}-{row}-0" for row in range(len(pairs.labels))]
            features["identifier"] += names
            for modality, x in pairs.inputs.items():
                features[modality].append(x)
            lines = [
                {"identifier": name, "label": str(bool(label)), "sentence": "Two dogs run."}
                for name, label in zip(names, pairs.labels.tolist(), strict=True)
            ]
            text = changed.get(part, "\n".join(map(json.dumps, lines)))
            (folder / f"{part}.json").write_text(text, encoding="utf-8")
        arrays = {m: np.concatenate(x) if m != "identifier" else np.array(x) for m, x in features.items()}
        np.savez(folder / "features.npz", **{m: x[::-1] for m, x in arrays.items() if m not in drop})
        for part in drop:
            (folder / f"{part}.json").unlink(missing_ok=True)
        return folder

    return to


def test_features_find_their_labels(write):
    parts, expected = load_nlvr2(write()), generated()
    assert list(parts) == ["train", "dev", "test1", "balanced_test1"]
    assert judged(parts) == ["test1", "balanced_test1"]
    for part, pairs in expected.items():
        assert torch.equal(parts[part].labels, pairs.labels)
        torch.testing.assert_close(parts[part].inputs, pairs.inputs)


def test_neither_modality_alone_tells(write):
    """In the generated pairs: the share of true sentences is a half for every number shown or said."""
    for part in generated().values():
        for x in part.inputs.values():
            shown = x.argmax(1)
            share = torch.stack([part.labels[shown == n].double().mean() for n in range(4)])
            assert float((share - 0.5).abs().max()) < 4 * 0.5 / math.sqrt(len(shown) / 4)


def test_uni_modal_experts_go_flat_and_the_product_follows_the_joint_one():
    found, entropy = study(generated(), 0, QUICK)
    for row in ("image", "text", "intra"):
        assert found[row]["test1"] < 56
    for row in ("inter", "I2M2"):
        assert found[row]["test1"] > 85
    assert min(entropy["image"], entropy["text"]) > 0.95 * math.log(2)
    assert entropy["image+text"] < 0.5 * math.log(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": ("dev",)}, r"lacks dev\.json"),
        ({"drop": ("text",)}, "two modalities"),
        ({"dev": json.dumps([{"identifier": "a", "label": "True"}])}, "not in the form of NLVR2"),
        ({"dev": json.dumps({"identifier": "a", "label": "maybe"})}, "not in the form of NLVR2"),
        ({"dev": ""}, "is empty"),
        ({"dev": json.dumps({"identifier": "other", "label": "True"})}, "has no identifier other"),
    ],
)
def test_folders_of_another_form_are_refused(write, change, message):
    with pytest.raises(DemoError, match=message):
        load_nlvr2(write(**change))


@pytest.mark.parametrize("arguments", [[], ["--generated"]])
def test_it_prints_accuracy_and_entropy(write, monkeypatch, capsys, arguments):
    write()
    monkeypatch.setattr(sys, "argv", ["experts_nlvr2", "--seeds", "2", "--epochs", "1", *arguments])
    experts_nlvr2.main()
    out = capsys.readouterr().out
    assert "| accuracy | test1 |" in out
    assert "| expert of I2M2 | entropy, nats |" in out


def test_without_the_folder_it_says_what_to_set(monkeypatch, capsys):
    monkeypatch.delenv("BALANCED_GRAD_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["experts_nlvr2"])
    with pytest.raises(SystemExit):
        experts_nlvr2.main()
    assert "or give --generated" in capsys.readouterr().err
