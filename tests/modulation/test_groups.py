"""Which parameter belongs to which modality: resolved when asked, checked when given."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad import BalancedOptimizer, ModalityGroups
from balanced_grad.optim._silence import SILENT_STEPS


@pytest.fixture
def model():
    return nn.ModuleDict(
        {"a": nn.Linear(2, 3), "v": nn.Linear(4, 3), "trunk": nn.Linear(3, 3), "head": nn.Linear(3, 2)}
    )


def test_modules_parameters_and_lists_of_both(model):
    groups = ModalityGroups(
        {"audio": model["a"], "video": [model["v"].weight, model["v"].bias]},
        shared=[model["trunk"], model["head"].bias],
    )
    assert groups.names == ("audio", "video")
    assert [p is q for p, q in zip(groups.parameters("audio"), model["a"].parameters(), strict=True)] == [True, True]
    assert groups.parameters("video") == [model["v"].weight, model["v"].bias]
    assert len(groups.shared) == 3
    assert groups.of(model["v"].bias) == "video"
    assert groups.of(model["trunk"].bias) is None
    assert groups.of(nn.Parameter(torch.zeros(1))) is None


def test_a_module_dict_is_a_mapping_too(model):
    assert ModalityGroups(model).names == ("a", "v", "trunk", "head")


def test_a_parameter_named_twice_in_one_group_counts_once(model):
    groups = ModalityGroups({"audio": [model["a"], model["a"].weight]})
    assert len(groups.parameters("audio")) == 2


def test_modules_are_asked_anew(model):
    groups = ModalityGroups({"audio": model["a"]})
    model["a"].weight = nn.Parameter(torch.ones(3, 2))
    assert groups.of(model["a"].weight) == "audio"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_belong_to_the_copied_model(model, clone):
    twin_model, twin = clone((model, ModalityGroups({"audio": model["a"]})))
    assert twin.of(twin_model["a"].weight) == "audio"
    assert twin.of(model["a"].weight) is None


def test_everything_trainable_is_somewhere(model):
    modalities = {"audio": model["a"], "video": model["v"]}
    ModalityGroups(modalities, shared=model["trunk"], ignore=model["head"], model=model)
    with pytest.raises(
        ValueError, match=r"trunk\.weight, trunk\.bias, head\.weight, head\.bias of the model are in no"
    ):
        ModalityGroups(modalities, model=model)
    model["head"].bias.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"^head\.weight of the model is in no group; add it to a modality, shared= or"
    ):
        ModalityGroups(modalities, shared=model["trunk"], model=model)
    model["head"].requires_grad_(False)
    ModalityGroups(modalities, shared=model["trunk"], model=model)


def test_a_long_list_of_forgotten_parameters_is_cut():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)))
    with pytest.raises(ValueError, match=r"0\.bias, 1\.weight, .* and 4 more of the model"):
        ModalityGroups({"audio": model[0].weight}, model=model)


@pytest.mark.parametrize(
    ("modalities", "error", "message"),
    [
        ({}, ValueError, "modalities is empty"),
        ([nn.Linear(1, 1)], TypeError, "modalities is a list; give a mapping"),
        ({"audio": nn.ReLU()}, ValueError, "modality 'audio' has no parameter"),
        ({"audio": []}, ValueError, "modality 'audio' has no parameter"),
        ({"joint": nn.Linear(1, 1)}, ValueError, "'joint' is the name of the fused prediction's loss"),
        ({3: nn.Linear(1, 1)}, TypeError, "modality names are strings, got 3"),
        ({"audio": 3}, TypeError, "modality 'audio' is a int; give a module"),
        ({"audio": "encoder"}, TypeError, "modality 'audio' is a str; give a module"),
        ({"audio": {"encoder": nn.Linear(1, 1)}}, TypeError, "modality 'audio' is a dict"),
        ({"audio": ["encoder"]}, TypeError, "modality 'audio' holds a str"),
        ({"audio": nn.Linear(1, 1).named_parameters()}, TypeError, "modality 'audio' holds a tuple"),
        ({"audio": nn.Linear(1, 1).weight * 2}, ValueError, r"'audio' holds a computed tensor of shape \(1, 1\)"),
    ],
)
def test_bad_groups_are_named(modalities, error, message):
    with pytest.raises(error, match=message):
        ModalityGroups(modalities)


@pytest.mark.parametrize("where", ["shared", "ignore"])
def test_overlap(model, where):
    with pytest.raises(
        ValueError, match=r"shape \(3, 2\) is in modality 'audio' and in modality 'video'; name it once"
    ):
        ModalityGroups({"audio": model["a"], "video": [model["v"], model["a"].weight]})
    with pytest.raises(ValueError, match=rf"shape \(3,\) is in modality 'audio' and in {where}"):
        ModalityGroups({"audio": model["a"]}, **{where: model["a"].bias})


def test_a_copy_of_the_model(model):
    twin = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"modality 'audio' has a parameter of shape .* not in the model; take"):
        ModalityGroups({"audio": twin["a"]}, ignore=model, model=model)


def test_repr(model):
    assert repr(ModalityGroups({"audio": model["a"]}, shared=model["head"].bias)) == (
        "ModalityGroups(audio: 2 parameters, shared: 1 parameters)"
    )


class TestSilence:
    """A modality that receives no gradient for long is reported, once."""

    def optimizer(self, model, kind=torch.optim.SGD):
        return BalancedOptimizer(
            kind(model.parameters(), lr=0.0), bg.Uniform(), modalities={"audio": model["a"], "video": model["v"]}
        )

    def steps(self, optimizer, model, count, *reached):
        for _ in range(count):
            optimizer.zero_grad()
            for name in reached:
                model[name].bias.sum().backward()
            optimizer.step()

    def test_it_is_reported_once(self, model):
        optimizer = self.optimizer(model)
        self.steps(optimizer, model, SILENT_STEPS - 1, "a")
        with pytest.warns(UserWarning, match=f"'video' has received no gradient in {SILENT_STEPS} steps in a row"):
            self.steps(optimizer, model, 1, "a")
        self.steps(optimizer, model, 2 * SILENT_STEPS, "a")

    def test_one_gradient_starts_the_count_anew(self, model):
        optimizer = self.optimizer(model)
        for _ in range(3):
            self.steps(optimizer, model, SILENT_STEPS - 1, "a")
            self.steps(optimizer, model, 1, "a", "v")

    def test_a_frozen_modality_is_meant(self, model):
        model["v"].requires_grad_(False)
        self.steps(self.optimizer(model), model, 2 * SILENT_STEPS, "a")

    def test_with_a_closure_the_gradients_of_this_step_count(self, model):
        optimizer = self.optimizer(model)

        def closure():
            optimizer.zero_grad()
            loss = model["a"].bias.sum() + model["v"].bias.sum()
            loss.backward()
            return loss

        for _ in range(SILENT_STEPS + 1):
            optimizer.step(closure)
            optimizer.zero_grad()

    def test_the_warning_points_at_the_users_line(self, model):
        optimizer = self.optimizer(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.steps(optimizer, model, SILENT_STEPS, "a")
        assert caught[0].filename == __file__
