import pytest
import torch

import balanced_grad as bg


def test_classification_is_the_mean_probability_of_the_right_class():
    logits, labels = torch.randn(6, 4), torch.randint(4, (6,))
    found = bg.scores({"audio": logits, "video": None}, labels)
    assert found["video"] is None
    torch.testing.assert_close(found["audio"], logits.softmax(1)[torch.arange(6), labels].mean())


def test_padded_labels_are_left_out():
    logits, labels = torch.randn(2, 3, 4), torch.tensor([[0, 1, -100], [3, -100, -100]])
    kept = labels != -100
    wanted = bg.scores({"text": logits[kept]}, labels[kept])["text"]
    torch.testing.assert_close(bg.scores({"text": logits}, labels)["text"], wanted)


def test_multilabel_is_the_mean_probability_of_the_right_answer():
    logits, labels = torch.randn(5, 3), torch.randint(2, (5, 3)).float()
    p = logits.sigmoid()
    wanted = torch.where(labels == 1, p, 1 - p).mean()
    torch.testing.assert_close(bg.scores({"audio": logits}, labels, "multilabel")["audio"], wanted)


def test_regression_ratios_are_those_of_the_errors():
    target = torch.randn(8)
    found = bg.scores({"audio": target + 1, "video": target + 2}, target, "regression")
    assert (found["audio"] / found["video"]).item() == pytest.approx(4)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_scores_are_detached_and_at_least_float32(task):
    shape = (4, 3) if task == "classification" else (4,)
    logits = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    score = bg.scores({"audio": logits}, torch.randint(2, (4,)), task)["audio"]
    assert not score.requires_grad
    assert score.dtype == torch.float32


def test_bad_input():
    with pytest.raises(ValueError, match="task='ranking'"):
        bg.scores({}, torch.zeros(2), "ranking")
    with pytest.raises(ValueError, match=r"\(4, 2\) for classification labels of shape \(3,\).* be \(..., classes\)"):
        bg.scores({"audio": torch.zeros(4, 2)}, torch.zeros(3).long())
    with pytest.raises(
        ValueError, match=r"logits of 'audio' have shape \(4, 1\) for regression labels of shape \(4,\)"
    ):
        bg.scores({"audio": torch.zeros(4, 1)}, torch.zeros(4), "regression")
