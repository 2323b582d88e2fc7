"""The benches of experts: their metrics, rules and noises against cases by hand; they run."""

import itertools
import math
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn", reason="pip install 'balanced-grad[demo]'")
pytest.importorskip("tqdm", reason="pip install 'balanced-grad[demo]'")

from balanced_grad.evidence import reduced_dempster
from bench import experts_controls, experts_ood, noise
from bench._late_rules import EvidenceHeads, by_energy, evidential_loss, mean_of_heads
from bench._metrics import ranking, summary, vqa_score


def test_auroc_is_the_share_of_pairs_in_order():
    torch.manual_seed(0)
    p, labels = torch.rand(40, 3).double(), torch.arange(40) % 3
    shares = []
    for k in range(3):
        own, others = p[labels == k, k], p[labels != k, k]
        shares.append((own[:, None] > others).double().mean().item())
    assert ranking(p, labels)[0] == pytest.approx(100 * sum(shares) / 3)


def test_a_perfect_ranking_and_a_class_that_nobody_has():
    p = torch.tensor([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]])
    assert ranking(p, torch.tensor([0, 0, 1])) == (100, 100)
    accuracy, auroc, auprc, nll = summary(p.clamp_min(1e-9).log(), torch.tensor([0, 1, 0]))
    assert accuracy == pytest.approx(100 / 3)
    assert auroc == pytest.approx(50)  # one pair of two is in order, in both classes
    assert auprc == pytest.approx(100 * 2 / 3)
    assert nll == pytest.approx(-(math.log(0.8) + math.log(0.4) + math.log(0.1)) / 3, rel=1e-5)


def test_vqa_score_is_a_third_for_each_who_agrees():
    answers = ["two"] * 3 + ["three"] * 2 + ["four"] * 5
    scores = [vqa_score([one], [answers]) for one in ("two", "three", "four", "five")]
    assert scores == pytest.approx([100, 200 / 3, 100, 0])
    assert vqa_score(["two", "five"], [answers, answers]) == 50


def test_dempster_is_the_pairwise_rule_of_the_source():
    """Beliefs, conflict and uncertainty written out for two sources over three classes."""
    evidence = torch.tensor([[3.0, 1.0, 0.0], [0.5, 2.0, 1.0]]).double()
    strength = evidence.sum(1) + 3
    (one, two), (u, v) = evidence / strength[:, None], 3 / strength
    conflict = sum(one[i] * two[j] for i, j in itertools.permutations(range(3), 2))
    belief = (one * two + one * v + two * u) / (1 - conflict)
    opinion = reduced_dempster(evidence)
    torch.testing.assert_close(opinion.belief, belief)
    torch.testing.assert_close(opinion.uncertainty, u * v / (1 - conflict))


def test_the_evidential_loss_without_evidence_and_with_much():
    """Flat: ``ψ(K) - ψ(1)``, the harmonic number; sure and right: near 0; sure and wrong: it grows, and so does KL."""
    flat, sure = torch.zeros(1, 1, 3), torch.tensor([[[1e4, 0.0, 0.0]]])
    right, wrong = torch.tensor([0]), torch.tensor([1])
    assert evidential_loss(flat, right, 1.0).item() == pytest.approx(1 + 1 / 2)
    assert evidential_loss(sure, right, 1.0).item() == pytest.approx(0, abs=1e-3)
    assert evidential_loss(sure, wrong, 1.0) > evidential_loss(sure, wrong, 0.0) > 9


def test_evidence_heads_trust_the_modality_that_knows():
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    features = {"knows": nn.functional.one_hot(labels, 3) + 0.1 * torch.randn(300, 3), "noise": torch.randn(300, 3)}
    heads = EvidenceHeads(features, 3).fit(features, labels)
    with torch.no_grad():
        assert (heads(features).argmax(1) == labels).double().mean() > 0.95
        assert (heads(features).exp().sum(1) - 1).abs().max() < 1e-5
        knows, idle = heads.evidence(features).sum(2).mean(0)
    assert knows > 3 * idle


def test_energy_weighs_a_confident_head_more_and_equal_heads_alike():
    sure, flat = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    weight = [by_energy({"one": x}) / x.clamp_min(1e-9) for x in (sure, flat)]
    assert weight[0][0, 0] > 5 * weight[1][0, 1]
    twice = by_energy({"one": sure, "two": sure})
    torch.testing.assert_close(twice, 2 * by_energy({"one": sure}))
    torch.testing.assert_close(mean_of_heads({"one": sure, "two": flat}), (sure + flat) / 2)


def test_noises_hit_as_much_as_they_say():
    generator = torch.Generator().manual_seed(0)
    x, train = torch.randn(500, 20, generator=generator), torch.randn(300, 20, generator=generator)
    added = noise.spoilt(x, "Gaussian", 2.0, train, generator) - x
    assert added.std().item() == pytest.approx(2, rel=0.05)
    dropped = noise.spoilt(x, "drop", 0.3, train, generator)
    assert (dropped == 0).double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(dropped[dropped != 0], x[dropped != 0])
    salted = noise.spoilt(x, "salt and pepper", 0.5, train, generator)
    least, largest = (salted == train.amin(0)), (salted == train.amax(0))
    assert least.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert largest.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(salted[~(least | largest)], x[~(least | largest)])


def test_the_cue_turns_over_and_nothing_else_does():
    cued, clean = experts_ood.data(0.9, seed=0)
    for split, share in (("test", 0.9), ("ood", 0.1)):
        inputs, labels = cued[split]
        before = clean["test"][0]
        cue = (inputs["two"] - before["two"])[:, experts_ood.CUE]
        assert ((cue > 0) == (labels > 0)).double().mean().item() == pytest.approx(share, abs=0.02)
        assert torch.equal(inputs["one"], before["one"])
        others = torch.arange(10) != experts_ood.CUE
        assert torch.equal(inputs["two"][:, others], before["two"][:, others])


def test_the_ensemble_has_about_the_parameters_of_the_product():
    task = experts_controls.toy("both", 1)
    product = sum(experts_controls.parameters(task.make(key)) for key in experts_ood.KEYS)
    joint = experts_ood.KEYS[-1]
    copies = experts_controls.members((joint, experts_controls.parameters(task.make(joint))), product)
    assert copies == [("one", "two"), ("two", "one")]
    assert 2 * experts_controls.parameters(task.make(joint)) == pytest.approx(product, rel=0.1)


@pytest.mark.parametrize(
    ("bench", "arguments", "row"),
    [
        (experts_controls, ["--datasets", "both", "--epochs", "1"], "| ensemble | 2948 |"),
        (experts_ood, ["--agreements", "0.8", "--epochs", "1"], "| bias product |"),
    ],
)
def test_they_run(bench, arguments, row, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--seeds", "1", *arguments])
    bench.main()
    assert row in capsys.readouterr().out


def test_noise_runs_draws_and_repeats_nothing(tmp_path, monkeypatch, capsys):
    out, picture = tmp_path / "noise.jsonl", tmp_path / "noise.png"
    arguments = ["--datasets", "digits-hard", "--seeds", "1", "--steps", "1", "--out", str(out), "--plot", str(picture)]
    monkeypatch.setattr(sys, "argv", ["noise", *arguments])
    noise.main()
    first = capsys.readouterr().out
    assert "| BOGC, Dempster |" in first
    assert picture.stat().st_size > 10_000
    monkeypatch.setattr(noise, "trained", lambda *_: pytest.fail("a run was repeated"))
    noise.main()
    assert capsys.readouterr().out == first
