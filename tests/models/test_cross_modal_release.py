"""Gradients of the objective against a port of the released recurrence, and what no likelihood may let in."""

import pytest
import torch

from balanced_grad.models import Bernoulli, Categorical, CrossModalVI, Gaussian, Likelihood, Modality


def released(x, z, up, down, bias, x_bias, steps, back):
    """Gradients of ``-log p(z | x)`` by the release's loops: of both weights, the hidden bias and the bias of ``z``.

    Tied weights ``up (H, D_x)`` and ``down (H, D_z)``; ``back`` predictions fed back are gone through.
    """
    drive = x @ up.T
    hidden, seen = [torch.sigmoid(2 * drive + bias)], []
    for _ in range(steps):
        seen.append(torch.sigmoid(hidden[-1] @ down + x_bias))
        hidden.append(torch.sigmoid(drive + seen[-1] @ down.T + bias))
    seen.append(torch.sigmoid(hidden[-1] @ down + x_bias))
    error = (seen[-1] - z) / z.numel()
    g_up, g_down, g_bias, g_x_bias = (torch.zeros_like(p) for p in (up, down, bias, x_bias))
    for i in range(steps, max(steps - back, 0) - 1, -1):
        g_down += hidden[i].T @ error
        g_x_bias += error.sum(0)
        at = hidden[i] * (1 - hidden[i]) * (error @ down.T)
        g_bias += at.sum(0)
        g_up += (2 if i == 0 else 1) * at.T @ x
        if i:
            g_down += at.T @ seen[i - 1]
            error = seen[i - 1] * (1 - seen[i - 1]) * (at @ down)
    return g_up, g_down, g_bias, g_x_bias


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
@pytest.mark.parametrize("back", [1, 2, 4, 9])
def test_truncation_at_the_prediction_is_the_releases(steps, back):
    vi = CrossModalVI({"x": Bernoulli(5), "z": Bernoulli(4)}, 6, steps=steps).double()
    for parameter in vi.parameters():
        parameter.data.normal_()
    x, z = torch.rand(7, 5).double(), torch.rand(7, 4).double()
    loss = vi.objective({"x": x, "z": z}, back_steps=back, cut="prediction").losses["z"]
    first, second = vi.branches
    wanted = (first.up.weight, second.up.weight, vi.bias, second.bias)
    found = torch.autograd.grad(loss, wanted)
    with torch.no_grad():
        want = released(x, z, first.up.weight, second.up.weight, vi.bias, second.bias, steps, back)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("options", [{"loop": "latent", "tied": False}, {"damping": 0.5}])
def test_truncation_changes_no_value_and_none_that_reaches_all_steps_changes_a_gradient(options):
    vi = CrossModalVI({"x": Bernoulli(5), "z": Gaussian(4)}, 6, steps=3, **options)
    for parameter in vi.parameters():
        parameter.data.normal_()
    inputs = {"x": torch.rand(7, 5), "z": torch.randn(7, 4)}
    full = vi.objective(inputs).losses
    for back in (1, 2, 3):
        cut = vi.objective(inputs, back_steps=back, cut="prediction").losses
        torch.testing.assert_close(cut, full)
        one, all_of_it = (torch.autograd.grad(sum(r.values()), vi.bias, retain_graph=True)[0] for r in (cut, full))
        assert torch.allclose(one, all_of_it) == (back == 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"back_steps": 1, "cut": "weights"}, "choose one of"), ({"cut": "prediction"}, "no meaning without back_steps=")],
)
def test_settings_of_truncation_are_checked(options, message):
    vi = CrossModalVI({"x": Bernoulli(5), "z": Bernoulli(4)}, 6)
    with pytest.raises(ValueError, match=message):
        vi.objective({"x": torch.rand(7, 5), "z": torch.rand(7, 4)}, **options)


class Custom(Gaussian):
    """A likelihood of the user's own, which says nothing of its support."""

    check = Likelihood.check


LIKELIHOODS = {
    "Bernoulli": Bernoulli(3),
    "Gaussian": Gaussian(3),
    "predicted": Gaussian(3, variance="predicted"),
    "unit": Gaussian(3, variance="unit"),
    "Categorical": Categorical(3),
    "Custom": Custom(3),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e20, -1e20])
@pytest.mark.parametrize("call", ["fit_biases", "objective", "forward"])
def test_no_likelihood_lets_in_what_it_cannot_reckon_with(name, bad, call):
    if name == "Custom" and abs(bad) == 1e20:
        pytest.skip("what is too large for it is the user's to say")
    vi = CrossModalVI({"odd": Modality(LIKELIHOODS[name], torch.nn.Flatten(), 3), "x": Bernoulli(2)}, 4)
    odd = torch.eye(3)[torch.arange(6) % 3]
    odd = odd.unsqueeze(1) if name == "Categorical" else odd
    inputs = {"odd": odd.clone(), "x": torch.rand(6, 2)}
    getattr(vi, call)(inputs)
    inputs["odd"][2] = bad
    with pytest.raises(ValueError, match="modality 'odd' is"):
        getattr(vi, call)(inputs)
    getattr(vi, call)(inputs, {"odd": torch.arange(6) != 2})  # in an absent slot anything may stand
    assert all(p.isfinite().all() for p in vi.parameters())


@pytest.mark.parametrize("kind", ["vi", "predict-all", "subsets"])
def test_a_modality_that_no_item_can_teach_is_left_out(kind):
    """Whoever has c has nothing else; a and b come together."""
    vi = CrossModalVI({name: Gaussian(3) for name in "abc"}, 4)
    inputs, early = {name: torch.randn(8, 3) for name in "abc"}, torch.arange(8) < 5
    losses = vi.objective(inputs, {"a": early, "b": early, "c": ~early}, kind=kind).losses
    assert "c" not in losses
    if kind != "subsets":
        assert list(losses) == ["a", "b"]
    alone = {"a": torch.arange(8) < 3, "b": (torch.arange(8) >= 3) & early, "c": ~early}
    assert vi.objective(inputs, alone, kind=kind).losses == {}
