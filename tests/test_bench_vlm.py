"""The questions and the models of ``bench.vlm``, without the hour that it takes."""

import pytest
import torch

import balanced_grad as bg
from bench import vlm


@pytest.fixture(scope="module")
def data():
    return vlm.parts(0)


def test_no_picture_is_in_two_parts(data):
    seen = {name: {tuple(image.flatten().tolist()) for image in part.images} for name, part in data.items()}
    assert not seen["train"] & (seen["validation"] | seen["test"])
    assert [len(part.words) for part in data.values()] == [3 * 900, 3 * 400, 3 * 497]


def test_answers_follow_from_what_is_asked(data):
    kind, first, second, answer = data["test"].words.T
    sums = kind == vlm.KIND + 1
    assert torch.equal(answer[sums], (first + second)[sums] % 10)
    digit, both = answer[kind == vlm.KIND], answer[kind == vlm.KIND + 2]
    assert torch.equal((both - second[kind == vlm.KIND + 2]) % 10, digit)  # the same pictures, in the same order


def test_pictures_of_others_leave_the_words(data):
    other = data["test"].with_images_of_others(torch.Generator().manual_seed(0))
    assert torch.equal(other.words, data["test"].words)
    assert not torch.equal(other.images, data["test"].images)


@pytest.mark.parametrize("name", vlm.MODELS)
def test_models_learn_the_answer_alone_and_split(name, data):
    model, part = vlm.MODELS[name](), data["train"].take(torch.arange(4))
    balancer = bg.MinNorm(level=bg.Tokens(model.model))
    output = model(part)
    expected = torch.nn.functional.cross_entropy(output.logits[:, -2], part.words[:, -1])
    torch.testing.assert_close(output.loss, expected)
    balancer({"joint": output.loss}).backward()
    assert {"text", "image"} <= set(balancer.last.names)
    assert bool((balancer.last.norm_shares()[:2] > 0).all())


def test_the_picture_reaches_qwen_patch_by_patch(data):
    image = torch.arange(64.0).view(1, 1, 8, 8)
    seen = {}
    model = vlm.Qwen()
    model.model.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(x=args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(vlm.Part(image, data["train"].words[:1]))
    first = seen["x"][:4, :4].flatten().tolist()  # four patches that are merged: the upper left quarter
    assert sorted(first) == sorted(image[0, 0, :4, :4].flatten().tolist())
