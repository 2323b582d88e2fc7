"""Annotations in the form of VQA v2, small and generated: the loader, its targets and the bench."""

import json
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")
pytest.importorskip("tqdm", reason="pip install 'balanced-grad[demo]'")

from balanced_grad.demo._data import DemoError
from bench import experts_vqa
from bench._metrics import vqa_score
from bench._vqa import load_vqa
from bench.experts_vqa import Batches, judged, score, study

ANSWERS = ("yes", "no", "Two ", "red")
SIZES = {"train": 300, "val": 80, "test": 80, "KW": 80}


def content(seed=0):
    """The image shows one bit of the answer, the text the other; in ``KW``, out of distribution, the text is turned."""
    rng = np.random.default_rng(seed)
    parts, features = {}, {"question_id": [], "image": [], "text": []}
    for part, count in SIZES.items():
        annotations = []
        for _ in range(count):
            bits = rng.integers(0, 2, 2)
            question, answer = len(features["question_id"]) + 7, ANSWERS[2 * bits[0] + bits[1]]
            people = [answer] * int(rng.integers(2, 9))
            people += [rng.choice(["maybe", *ANSWERS]) for _ in range(10 - len(people))]
            annotations.append({"question_id": question, "answers": [{"answer": str(one)} for one in people]})
            for modality, bit in zip(("image", "text"), bits, strict=True):
                turned = -1 if (part, modality) == ("KW", "text") else 1
                features[modality].append(2 * turned * (2 * bit - 1) + 0.1 * rng.standard_normal(4))
            features["question_id"].append(question)
        parts[part] = {"annotations": annotations}
    return parts, {name: np.array(x) for name, x in features.items()}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.setenv("BALANCED_GRAD_DATA", str(tmp_path))
    folder = tmp_path / "vqa"
    folder.mkdir()

    def to(parts=None, features=None):
        usual = content()
        for part, own in (usual[0] if parts is None else parts).items():
            (folder / f"{part}.json").write_text(json.dumps(own))
        np.savez(folder / "features.npz", **(usual[1] if features is None else features))
        return folder

    return to


def test_a_target_is_the_score_of_giving_that_answer(write):
    data = load_vqa(write())
    assert sorted(data.vocabulary) == ["no", "red", "two", "yes"]  # nobody's most frequent answer is maybe nine times
    part = data.parts["val"]
    targets = part.targets(torch.arange(80), 4)
    for column, answer in enumerate(data.vocabulary):
        for target, given in zip(targets[:, column].tolist(), part.answers, strict=True):
            assert 100 * target == pytest.approx(vqa_score([answer], [given]))


def test_the_rarest_answers_are_not_known(write):
    folder = write()
    counts = [len(load_vqa(folder, least).vocabulary) for least in (1, 9, 70)]
    assert counts == sorted(counts, reverse=True)
    with pytest.raises(DemoError, match="to 400 questions or more"):
        load_vqa(folder, 400)


def test_features_find_their_questions_in_any_order(write):
    _, features = content()
    before = load_vqa(write()).parts["test"].inputs["image"]
    turned = {name: x[::-1].copy() for name, x in features.items()}
    assert torch.equal(load_vqa(write(features=turned)).parts["test"].inputs["image"], before)


def test_batches_are_the_part_in_any_order(write):
    data = load_vqa(write())
    plain, shuffled = (list(Batches(data.parts["train"], 4, seed)) for seed in (None, 0))
    assert not torch.equal(plain[0][1], shuffled[0][1])
    sums = [sum(target.sum(0) for _, target in batches) for batches in (plain, shuffled)]
    torch.testing.assert_close(*sums)


def test_only_both_modalities_answer_and_the_turned_text_misleads(write, monkeypatch):
    monkeypatch.setitem(experts_vqa.RECIPE, "lr", 1e-2)
    data = load_vqa(write())
    assert judged(data) == ["test", "KW"]
    found = study(data, 0, 5)
    given = data.parts["test"].answers
    best = vqa_score([max(people, key=people.count) for people in given], given)
    for row in ("intra", "inter", "I2M2"):
        assert best + 1e-6 >= found[row]["test"] > found["image"]["test"] + 10
        assert found[row]["KW"] < found[row]["test"] - 20
        assert found["image"]["KW"] > found[row]["KW"]


def test_the_score_of_a_product_is_that_of_its_answers(write):
    data = load_vqa(write())

    class Always(torch.nn.Module):
        def forward(self, inputs):
            return torch.eye(4)[torch.full((len(inputs["image"]),), 2)]

    part = data.parts["KW"]
    assert score(Always(), data, "KW") == vqa_score([data.vocabulary[2]] * 80, part.answers)


def without(features, name):
    return {key: x for key, x in features.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts, features: (without(parts, "val"), features), r"lacks val\.json"),
        (lambda parts, features: (parts | {"test": {"questions": []}}, features), "not in the form of VQA v2"),
        (lambda parts, features: (parts | {"test": {"annotations": []}}, features), "needs questions"),
        (lambda parts, features: (parts, without(features, "text")), "two modalities"),
        (
            lambda parts, features: (parts, {k: x[1:] for k, x in features.items()}),
            "has no question_id 7",
        ),
    ],
)
def test_folders_of_another_form_are_refused(write, change, message):
    folder = write(*change(*content()))
    with pytest.raises(DemoError, match=message):
        load_vqa(folder)


def test_it_prints_a_column_per_part(write, monkeypatch, capsys):
    write()
    monkeypatch.setattr(sys, "argv", ["experts_vqa", "--seeds", "2", "--epochs", "1"])
    experts_vqa.main()
    out = capsys.readouterr().out
    assert "| VQA score | test | KW |" in out
    assert "| I2M2 |" in out


def test_without_the_folder_it_says_what_to_set(monkeypatch, capsys):
    monkeypatch.delenv("BALANCED_GRAD_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["experts_vqa"])
    with pytest.raises(SystemExit):
        experts_vqa.main()
    assert "set BALANCED_GRAD_DATA" in capsys.readouterr().err
