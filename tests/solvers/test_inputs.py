"""What may be passed, and the errors for what may not."""

import subprocess
import sys

import pytest
import torch

from balanced_grad.solvers import MinNormResult, Status, min_norm

G3 = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.5], [1.0, 0.5, 4.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gramian": torch.ones(3)}, ValueError, r"shape \(3,\).*\(\.\.\., M, M\)"),
        ({"gramian": torch.ones(2, 3)}, ValueError, r"shape \(2, 3\).*J @ J.mT"),
        ({"gramian": torch.ones(0, 0)}, ValueError, "M >= 1"),
        ({"gramian": [[1.0]]}, TypeError, "list.*pass a tensor"),
        ({"gramian": torch.ones(2, 2, dtype=torch.int64)}, ValueError, r"int64.*gramian.double\(\)"),
        ({"method": "newton"}, ValueError, "'newton'.*'faces'"),
        ({"gramian": torch.eye(5), "method": "closed"}, ValueError, "'closed' takes at most 3 rows.*has 5"),
        ({"gramian": torch.eye(9), "method": "faces"}, ValueError, "'faces' takes at most 8 rows.*has 9"),
        ({"active": torch.ones(3)}, TypeError, "float32.*bool"),
        ({"active": [True, True, True]}, TypeError, "list.*bool"),
        ({"active": torch.ones(2, dtype=torch.bool)}, ValueError, r"active has shape \(2,\).*\(3,\)"),
        ({"linear": torch.ones(4)}, ValueError, r"linear has shape \(4,\).*\(3,\)"),
        ({"linear": torch.tensor([0.0, torch.nan, 0.0])}, ValueError, "linear.*not finite"),
        ({"lower": float("nan")}, ValueError, "lower.*not finite"),
        ({"linear": torch.ones(3), "method": "faces"}, ValueError, "'faces'.*choose 'auto', 'cvxpy' or 'scipy'"),
        ({"upper": 0.3}, ValueError, r"upper sums to 0\.9.*at least 1"),
        ({"lower": 0.4}, ValueError, r"lower sums to 1\.2.*at most 1"),
        ({"lower": 0.5, "upper": 0.4}, ValueError, r"lower=0\.5 is above upper=0\.4"),
        ({"inequalities": (torch.ones(1, 2), torch.ones(1))}, ValueError, r"\(1, 2\).*A \(K, 3\)"),
        ({"inequalities": (torch.ones(1, 3), torch.zeros(1))}, ValueError, "no weights satisfy.*loosen b"),
        (
            {"inequalities": (torch.ones(1, 3), torch.zeros(1)), "method": "scipy"},
            ValueError,
            "no weights satisfy.*loosen b",
        ),
    ],
)
def test_errors_name_what_was_written(arguments, error, message):
    with pytest.raises(error, match=message):
        min_norm(**{"gramian": G3, **arguments})


@pytest.mark.parametrize("rest", [0.0, 1.0])
@pytest.mark.parametrize("M", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [(0, 0), (-1, -1), (0, -1), (-1, 0)])
def test_non_finite_is_a_status_and_never_a_uniform(M, bad, where, rest):
    G = rest * (torch.eye(M) + 1.0)
    G[where] = bad
    for method in ("auto", "active_set", "cvxpy", "scipy", *(["faces"] if M <= 4 else [])):
        result = min_norm(G, method=method)
        assert result.weights.isnan().all()
        assert result.gap.isnan()
        assert result.status == Status.NON_FINITE
        assert not result.solved


def test_no_active_row():
    for method in ("auto", "faces", "active_set", "scipy"):
        result = min_norm(G3, active=torch.zeros(3, dtype=torch.bool), method=method)
        assert torch.equal(result.weights, torch.zeros(3))
        assert result.status == Status.NO_ACTIVE_ROW
        assert result.gap == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype):
    result = min_norm(G3.to(dtype))
    assert result.weights.dtype is torch.float32
    torch.testing.assert_close(result.weights, min_norm(G3).weights)


def test_one_row_takes_weight_one():
    for value in (0.0, 3.0, 1e-30):
        assert min_norm(torch.tensor([[value]])).weights.item() == 1.0


def test_the_gramian_is_left_alone_and_need_not_be_detached():
    for M in (2, 3, 6, 12):
        G = (torch.eye(M) + 0.1).requires_grad_()
        before = G.detach().clone()
        for method in ("auto", "active_set"):
            weights = min_norm(G, method=method).weights
            assert not weights.requires_grad
        assert torch.equal(G.detach(), before)


def test_result_unpacks_and_repr_names_its_parts():
    result = min_norm(G3)
    weights, gap, iterations, status = result
    assert isinstance(result, MinNormResult)
    assert (weights.shape, gap.shape, iterations.shape, status.shape) == ((3,), (), (), ())
    assert all(word in repr(result) for word in ("weights", "gap", "iterations", "status"))


def test_importing_the_solvers_imports_neither_scipy_nor_cvxpy():
    code = (
        "import sys, torch, balanced_grad.solvers as s; s.min_norm(torch.eye(12)); "
        "print([m for m in ('scipy', 'cvxpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
