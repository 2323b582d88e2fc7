import textwrap

import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.__main__ import main
from balanced_grad.check import Cost, check
from balanced_grad.check._names import collapsed, covering
from tests.conftest import MODALITIES, LateFusion, make_batch


def parts_of(report):
    return {frozenset(part.losses): part for part in report.parts}


def test_the_plan_of_a_model_with_a_trunk():
    model = LateFusion()
    report = check(model.losses(*make_batch()), model)
    parts = parts_of(report)
    assert {losses: part.where for losses, part in parts.items()} == {
        frozenset({"joint"}): ("fused.*",),
        frozenset({"joint", "audio"}): ("encoders.audio.*",),
        frozenset({"joint", "video"}): ("encoders.video.*",),
        frozenset({"joint", "audio", "video"}): ("trunk.*",),
        frozenset({"audio"}): ("heads.audio.*",),
        frozenset({"video"}): ("heads.video.*",),
    }
    assert sum(part.entries for part in report.parts) == sum(p.numel() for p in model.parameters())
    assert report.unreached == ()
    assert report.advice == []
    assert list(report.losses) == ["joint", "audio", "video"]


def test_rows_are_those_that_a_step_keeps():
    model, balancer = LateFusion(MODALITIES), bg.MinNorm()
    report = check(model.losses(*make_batch(MODALITIES)), model)
    balancer(model.losses(*make_batch(MODALITIES))).backward()
    assert report.rows == balancer._source.memory.arena.nbytes
    plain = sum(p.nbytes for p in model.parameters())
    exclusive = sum(part.row for part in report.parts if not part.shared)
    assert report.traffic == {"losses": plain + 16, "features": plain + 144, "parameters": report.rows + exclusive + 16}


def test_leaves_gradients_and_graph_alone():
    model = LateFusion()
    losses = model.losses(*make_batch())
    check(losses, model)
    assert all(p.grad is None for p in model.parameters())
    bg.MinNorm()(losses).backward()


def test_cost_is_measured():
    model = LateFusion()
    cost = check(model.losses(*make_batch())).cost
    assert cost.plain > 0
    assert cost.per_loss > 0
    assert Cost(plain=2.0, per_loss=4.0).ratio == pytest.approx(5 / 3)  # (1 + 4) / (1 + 2)


def test_what_looks_like_a_mistake():
    model = LateFusion()
    losses = model.losses(*make_batch())
    alone = check({"audio": losses["audio"], "speech": losses["audio"].detach() + model.fused.weight.sum()}, model)
    assert set(alone.unreached) == {"encoders.video.*", "heads.video.*", "fused.bias"}
    text = str(alone)
    assert "note: no loss is named 'joint'" in text
    assert "note: no two losses meet in any parameter" in text
    assert "note: no loss reaches encoders.video.*" in text
    assert "note" not in str(check(losses, model))


def test_without_a_model_shapes_are_named():
    report = check({"joint": nn.Linear(3, 1)(torch.ones(1, 3)).sum()})
    assert set(report.parts[0].where) == {"a parameter of shape (1,)", "a parameter of shape (1, 3)"}


def test_refuses_what_a_balancer_refuses():
    with pytest.raises(ValueError, match="'audio' has no graph"):
        check({"audio": torch.ones(())})


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["a.b.w", "a.b.v", "a.c"], ["a.*"]),
        (["a.b.w", "a.b.v"], ["a.b.*"]),
        (["a.b.w", "d"], ["a.b.w", "d"]),
        ([], []),
    ],
)
def test_names_are_as_few_as_say_the_same(chosen, expected):
    assert covering(chosen, ["a.b.w", "a.b.v", "a.c", "d"]) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"h.{i}.w" for i in range(4)], ["h.{0..3}.w"]),
        ([f"h.{i}.w" for i in (0, 2, 4, 5, 6)], ["h.{0,2,4..6}.w"]),
        ([f"h.{i}.{w}" for i in range(3) for w in ("weight", "bias")], ["h.{0..2}.{bias,weight}"]),
        ([f"{m}.{p}_proj.w" for m in "ab" for p in "qv"] + ["c"], ["{a,b}.{q,v}_proj.w", "c"]),
        (["audio.*", "video.*", "fused.bias"], ["audio.*", "video.*", "fused.bias"]),
        (["h.0.w", "h.1.b"], ["h.0.w", "h.1.b"]),
        ([], []),
    ],
)
def test_names_that_differ_in_few_places_are_one(names, expected):
    assert collapsed(names) == expected


GOOD = """
    import torch
    from helper import width

    def batch():
        model = torch.nn.ModuleDict({"audio": torch.nn.Linear(2, width), "head": torch.nn.Linear(width, 1)})
        z = model["audio"](torch.ones(4, 2))
        return model, {"joint": model["head"](z).sum(), "audio": z.square().sum(), "video": None}

    def losses():
        return batch()[1]

    def broken():
        return batch()[1]["smell"]

    def stepped():
        model, losses = batch()
        return model, losses, torch.optim.SGD(model["audio"].parameters(), lr=0.1)

    def odd():
        return (*batch(), 3)

    def pair():
        return batch()[1], batch()[0]

    def number():
        return 3

    def detached():
        return {"joint": torch.ones(())}

    def needs(argument):
        return argument

    if __name__ == "__main__":
        raise AssertionError("this part is not run")
"""


@pytest.fixture
def script(tmp_path):
    (tmp_path / "helper.py").write_text("width = 3\n")
    (tmp_path / "train.py").write_text(textwrap.dedent(GOOD))
    (tmp_path / "bad.py").write_text("import torch\nimport nothing_of_the_kind\n")
    return tmp_path


@pytest.mark.parametrize(("function", "where"), [("batch", "audio.*"), ("losses", "a parameter of shape (3,)")])
def test_the_command_prints_the_report(script, capsys, function, where):
    assert main(["check", f"{script / 'train.py'}:{function}"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    (line,) = (line for line in out.splitlines() if line.startswith("  joint + audio"))
    assert line.split()[3:5] == ["9", "2"]
    assert where in line
    assert "bytes reduced per process and step" in out


def test_the_function_may_return_its_optimizer(script, capsys):
    assert main(["check", f"{script / 'train.py'}:stepped"]) == 0
    assert "note: the optimizer does not hold head.*" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "messages"),
    [
        ("train.py:odd", ["thing 3 that", "is of type int; it must return (model, losses)"]),
        ("train.py:nope", ["has no function 'nope'; it has batch, losses, broken"]),
        (
            "train.py:broken",
            ["fails when called without arguments; it must return (model, losses)", "KeyError: 'smell'"],
        ),
        ("train.py:broken", ['return batch()[1]["smell"]', ", line "]),
        ("train.py:needs", ["fails when called without arguments", "TypeError"]),
        ("train.py:pair", ["the first thing that", "is of type dict; it must return"]),
        ("train.py:number", ["returns an object of type int; it must return (model, losses)"]),
        ("train.py:detached", ["cannot be balanced", "'joint' has no graph"]),
        ("bad.py:batch", ["cannot be loaded", "line 2", "ModuleNotFoundError"]),
    ],
)
def test_errors_in_the_script_say_where_and_what_to_write(script, capsys, target, messages):
    assert main(["check", str(script / target)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    for message in messages:
        assert message in err
    assert "balanced_grad/check" not in err


@pytest.mark.parametrize(
    ("target", "message"), [("train.py", "write FILE.py:FUNCTION"), ("no.py:f", "there is no file")]
)
def test_wrong_arguments_end_with_status_two(capsys, target, message):
    with pytest.raises(SystemExit) as stop:
        main(["check", target])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
