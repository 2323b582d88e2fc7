"""Records of steps in a loop of one's own: what is in them, where they go, and the picture of them."""

import csv
import json
import math

import pytest
import torch

import balanced_grad as bg
from balanced_grad.integrations import CSV, JSONLines, StepLogger, TensorBoard, log_values
from tests.conftest import LateFusion, NoHostReads, make_batch


def train(log, balancer, steps=5, model=None):
    model = model or LateFusion()
    for seed in range(steps):
        balancer(model.losses(*make_batch(seed=seed))).backward()
        log.step()


class Kept(list):
    """A writer of one's own."""

    closed = False

    def write(self, step, values):
        self.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_every_step_is_recorded_once_in_order_and_as_log_values_has_it():
    balancer, model, seen = bg.MinNorm(), LateFusion(), []
    log = StepLogger(balancer, kept := Kept(), every=3)
    for seed in range(7):
        balancer(model.losses(*make_batch(seed=seed))).backward()
        log.step()
        seen.append({name: value.item() for name, value in log_values(balancer.last, pairs=True).items()})
        assert len(kept) == 3 * ((seed + 1) // 3)
    log.close()
    assert kept.closed
    assert kept == [(step, pytest.approx(values)) for step, values in enumerate(seen)]
    assert log.records == [{"step": step} | values for step, values in kept]


def test_norms_cosines_and_evidence_are_there():
    balancer = bg.MinNorm()
    with StepLogger(balancer, prefix="") as log:
        train(log, balancer, 1)
    (record,), last = log.records, balancer.last
    gramian = last.gramian.sum(0) if last.gramian.dim() > 2 else last.gramian
    assert record["norm/audio"] == pytest.approx(gramian[1, 1].sqrt().item())
    wanted = gramian[0, 1] / (gramian[0, 0] * gramian[1, 1]).sqrt()
    assert record["cosine/joint,audio"] == pytest.approx(wanted.item())
    assert "cosine/joint,audio" not in log_values(last, "")
    model = LateFusion()
    balancer = bg.BOGC(model.encoders)
    with StepLogger(balancer, prefix="") as log:
        train(log, balancer, 2, model)
    trust = balancer.last.trust
    assert log.records[-1]["uncertainty"] == pytest.approx(trust.uncertainty.item())
    assert log.records[-1]["belief/video"] == pytest.approx(trust.belief[2].item())


def test_a_step_reads_nothing_from_the_device_until_the_flush():
    balancer = bg.MIMO()
    log = StepLogger(balancer, every=100)
    balancer(LateFusion().losses(*make_batch())).backward()
    with NoHostReads():
        log.step()
    assert log.records == []
    log.flush()
    assert len(log.records) == 1


def test_files(tmp_path):
    balancer = bg.MIMO()
    lines, rows = JSONLines(tmp_path / "steps.jsonl"), CSV(tmp_path / "steps.csv")
    with StepLogger(balancer, lines, rows, every=2) as log:
        train(log, balancer, 3)
    assert [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()] == log.records
    with (tmp_path / "steps.csv").open() as file:
        found = {(int(row["step"]), row["name"]): float(row["value"]) for row in csv.DictReader(file)}
    wanted = {
        (record["step"], name): value for record in log.records for name, value in record.items() if name != "step"
    }
    assert found == wanted
    lines.write(3, {"a": math.nan, "b": math.inf})
    assert json.loads((tmp_path / "steps.jsonl").read_text().splitlines()[-1]) == {"step": 3, "a": None, "b": None}
    JSONLines(tmp_path / "steps.jsonl")
    assert (tmp_path / "steps.jsonl").read_text() == ""  # begun anew


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tests.integrations.test_loggers import of_events

    balancer = bg.MIMO()
    with StepLogger(balancer, TensorBoard(tmp_path)) as log:
        train(log, balancer, 2)
    assert of_events(tmp_path) == set(log.records[0]) - {"step"}


def test_a_summary_writer_of_the_users_stays_open():
    class Summary:
        def __init__(self):
            self.said = []

        def add_scalar(self, *given):
            self.said.append(given)

    writer = TensorBoard(own := Summary())
    writer.write(4, {"a": 1.0})
    writer.close()
    assert own.said == [("a", 1.0, 4)]


def test_one_that_is_passed_by_and_wrong_arguments():
    log = StepLogger(bg.MIMO())
    with pytest.warns(bg.InactiveBalancerWarning, match="give the logger the very balancer that is called"):
        log.step()
    with pytest.raises(TypeError, match=r"a writer is a str; give JSONLines\(path\)"):
        StepLogger(bg.MIMO(), "steps.jsonl")
    with pytest.raises(ValueError, match="every=0"):
        StepLogger(bg.MIMO(), every=0)


def test_numbers_of_steps_can_be_given():
    balancer = bg.MIMO()
    with StepLogger(balancer) as log:
        balancer({"a": torch.ones(1, requires_grad=True).sum()}).backward()
        log.step(100)
        log.step()
    assert [record["step"] for record in log.records] == [100, 101]


class TestPicture:
    def records(self):
        balancer = bg.MinNorm()
        with StepLogger(balancer) as log:
            train(log, balancer, 6)
        return log.records

    def test_from_records_files_and_a_trainers_history(self, tmp_path):
        pytest.importorskip("matplotlib", reason="pip install 'balanced-grad[demo]'")
        records = self.records()
        (tmp_path / "steps.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        history = [{"loss": 1.0, "balance/weight/audio": 1.0, "step": 10}, {"eval_loss": 2.0, "step": 10}]
        for place, given in enumerate((records, tmp_path / "steps.jsonl", str(tmp_path / "steps.jsonl"), history)):
            bg.plot_history(given, tmp_path / f"{place}.png", smooth=2)
        pictures = [(tmp_path / f"{place}.png").read_bytes() for place in range(4)]
        assert all(picture.startswith(b"\x89PNG") for picture in pictures)
        assert pictures[0] == pictures[1] == pictures[2] != pictures[3]

    def test_what_is_drawn(self):
        from balanced_grad.integrations._history import _curves

        curves = _curves(self.records())
        assert list(curves) == ["loss", "weight", "norm", "cosine"]
        assert list(curves["weight"]) == ["joint", "audio", "video"]
        assert curves["loss"]["audio"][0] == [0, 1, 2, 3, 4, 5]
        assert _curves([{"weight/a": None}, {"x/weight/a": 2}]) == {"weight": {"a": ([1.0], [2.0])}}

    def test_nothing_to_draw(self, tmp_path):
        with pytest.raises(ValueError, match="no record has a name such as 'balance/weight/audio'"):
            bg.plot_history([{"step": 1, "loss": 2.0}], tmp_path / "none.png")
        with pytest.raises(ValueError, match="smooth=0"):
            bg.plot_history([], tmp_path / "none.png", smooth=0)
