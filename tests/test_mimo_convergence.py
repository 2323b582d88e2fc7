"""MIMO on convex problems: the oracles are right, the constants are, and what is promised holds at every step."""

import math
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("tqdm", reason="pip install 'balanced-grad[demo]'")
pytest.importorskip("matplotlib", reason="pip install 'balanced-grad[demo]'")

import balanced_grad as bg
from bench import mimo_convergence as study
from bench._convex import late_fusion, lexicographic, minimiser, quadratics
from bench._mimo_theory import Case, MiniBatches, bounds, descend, gaps, schedule, trace

torch.set_num_threads(1)
MAKERS = (quadratics, late_fusion)
ROUNDING = 1e-6  # of the solvers


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def known(request):
    problem = request.param(3)
    return problem, lexicographic(problem)


@pytest.fixture(scope="module")
def batches():
    problem = late_fusion(3)
    return MiniBatches(Case.of(problem, 2.0, 0.2, lexicographic(problem)), 16)


class TestOracles:
    @pytest.mark.parametrize("seed", range(3))
    def test_least_worst_loss_of_the_quadratics_is_at_the_centre_of_the_circle(self, seed):
        problem = quadratics(seed)
        solution = lexicographic(problem)
        shared = problem.modalities["m0"].A
        torch.testing.assert_close(shared @ solution.x, torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)
        assert solution.worst == pytest.approx(0.25, abs=ROUNDING)
        assert solution.multiplier < math.inf

    @pytest.mark.parametrize("seed", range(3))
    def test_least_worst_loss_of_late_fusion_is_that_of_the_worst_modality_alone(self, seed):
        problem = late_fusion(seed)
        solution = lexicographic(problem)
        alone = [float(term(minimiser(term, problem.start))) for term in problem.modalities.values()]
        assert solution.worst == pytest.approx(max(alone), abs=ROUNDING)
        assert solution.multiplier == math.inf

    def test_a_huge_penalty_leads_to_the_lexicographic_solution(self, known):
        problem, solution = known
        own = gaps(problem, solution, Case.of(problem, 300.0, 1e-5, solution).best)
        assert own == pytest.approx((0, 0), abs=5e-3)
        assert float(problem.joint(solution.x)) == pytest.approx(solution.joint, abs=1e-5)

    def test_the_multiplier_is_what_makes_the_solution_a_minimiser(self):
        problem = quadratics(3)
        solution = lexicographic(problem)
        away = solution.x + 0.1 * torch.randn(500, len(solution.x), dtype=torch.float64)
        total = [float(problem.joint(x) + solution.multiplier * problem.worst(x)) for x in away]
        assert min(total) >= solution.joint + solution.multiplier * solution.worst - 1e-4


class TestConstants:
    @pytest.mark.parametrize("smoothing", [0.02, 0.5])
    def test_no_curvature_is_above_the_smoothness(self, known, smoothing):
        problem, solution = known
        case = Case.of(problem, 2.0, smoothing, solution)
        most = float(problem.objective(problem.start, 2.0, smoothing))
        points = [case.best, problem.start, *(2 * torch.randn(50, len(case.best), dtype=torch.float64))]
        inside = [x for x in points if float(problem.objective(x, 2.0, smoothing)) <= most]
        assert len(inside) >= 2
        for x in inside:
            hessian = torch.autograd.functional.hessian(lambda y: problem.objective(y, 2.0, smoothing), x)
            assert float(torch.linalg.eigvalsh(hessian).max()) <= case.smoothness

    def test_the_library_descends_on_the_objective(self, known):
        problem, _ = known
        x = torch.randn(len(problem.start), dtype=torch.float64, requires_grad=True)
        for value in (bg.MIMO(1.5, 0.1)(problem.losses(x)), problem.objective(x, 1.5, 0.1)):
            value.backward()
        by_library = descend(problem, 1.5, 0.1, 0.01, steps=1)
        start = problem.start.requires_grad_()
        problem.objective(start, 1.5, 0.1).backward()
        torch.testing.assert_close(by_library, -0.01 * start.grad)


class TestPromises:
    @pytest.mark.parametrize("penalty", [0.3, 2.0, 8.0])
    @pytest.mark.parametrize("smoothing", [0.05, 0.5])
    def test_both_bounds_hold_at_every_step_and_at_the_end(self, known, penalty, smoothing):
        problem, solution = known
        case = Case.of(problem, penalty, smoothing, solution)
        seen = trace(case, 150)
        promised = np.array([case.bounds_at(step) for step in range(1, 150)])
        assert (seen[1:] <= promised + ROUNDING).all()
        most = bounds(solution, penalty, smoothing, len(problem.modalities), 0)
        own = gaps(problem, solution, case.best)
        assert own.worst <= most.worst + ROUNDING
        assert own.joint <= most.joint + ROUNDING

    def test_the_least_gradient_falls_as_promised(self, known):
        problem, solution = known
        case = Case.of(problem, 2.0, 0.2, solution)
        squares = []

        def look(step, x, losses):
            y = x.clone().requires_grad_()
            squares.append(float(torch.autograd.grad(problem.objective(y, 2.0, 0.2), y)[0].square().sum()))

        descend(problem, 2.0, 0.2, 1 / case.smoothness, 60, look=look)
        drop = float(problem.objective(problem.start, 2.0, 0.2) - problem.objective(case.best, 2.0, 0.2))
        assert all(min(squares[:k]) <= 2 * case.smoothness * drop / k for k in range(1, 61))

    @pytest.mark.parametrize("tolerance", [0.01, 0.3, 2.0])
    def test_the_schedule_meets_the_tolerance(self, known, tolerance):
        _, solution = known
        penalty, smoothing = schedule(tolerance, solution.given_up, 3, solution.multiplier)
        assert bounds(solution, penalty, smoothing, 3, tolerance / 2) == pytest.approx((tolerance, tolerance))

    def test_a_finite_penalty_is_exact_where_losses_cross_and_falls_as_its_square_where_they_do_not(self):
        worst = {}
        for make in MAKERS:
            problem = make(3)
            solution = lexicographic(problem)
            worst[make] = [gaps(problem, solution, Case.of(problem, p, 1e-3, solution).best).worst for p in (4.0, 8.0)]
        assert worst[quadratics][1] > 0.5 * worst[quadratics][0]  # what is left is the smoothing's
        assert worst[quadratics][0] < 1e-3
        assert worst[late_fusion][0] / worst[late_fusion][1] == pytest.approx(4, rel=0.4)


class TestMiniBatches:
    def test_the_mean_objective_is_above_the_objective_by_no_more_than_the_noise(self, batches):
        case = batches.case
        for x in torch.randn(20, len(case.best), dtype=torch.float64):
            assert batches.objective(x) >= case.problem.objective(x, case.penalty, case.smoothing) - 1e-12
        assert 0 <= batches.bias <= min(batches.noise, batches.noise**2 / (2 * case.smoothing))

    def test_its_minimiser_keeps_the_bounds_with_the_bias(self, batches):
        case = batches.case
        own = gaps(case.problem, case.solution, batches.best)
        most = bounds(case.solution, case.penalty, case.smoothing, 3, 0, batches.bias)
        assert own.worst <= most.worst
        assert own.joint <= most.joint

    def test_what_sgd_leaves_is_within_its_bound(self, batches):
        least = float(batches.objective(batches.best))
        runs = [batches.run(80, seed) for seed in range(4)]
        left = [float(batches.objective(x)) - least for x, _ in runs]
        assert np.mean(left) <= np.mean([promised for _, promised in runs])
        assert min(left) > 0

    def test_equal_batches_have_no_noise(self):
        problem = late_fusion(0, items=16)
        twice = problem[torch.arange(16).repeat(2)]
        batches = MiniBatches(Case.of(twice, 2.0, 0.2), 16)
        assert batches.bias == pytest.approx(0, abs=1e-12)
        assert batches.noise == pytest.approx(0, abs=1e-12)
        assert batches.variance(twice.start) == pytest.approx(0, abs=1e-12)


def test_it_prints_four_tables_and_draws(tmp_path, monkeypatch, capsys):
    for name, value in {"TOLERANCES": (1.0,), "PENALTIES": (2.0,), "SMOOTHINGS": (0.3,), "SGD_STEPS": (40,)}.items():
        monkeypatch.setattr(study, name, value)
    picture = tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["mimo_convergence", "--seeds", "1", "--plot", str(picture)])
    study.main()
    shown = capsys.readouterr().out
    assert shown.count("| --- |") == 4
    for row in (
        "| shared parameters, quadratics, ε = 1 |",
        "| late fusion, logistic: its bound |",
        "| b |",
        "| 40 steps |",
    ):
        assert row in shown
    assert picture.stat().st_size > 10_000
