import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.audio, self.video = nn.Linear(4, 5), nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 3))

    def forward(self, audio, video=None):
        z = self.audio(audio)
        return self.head(self.norm(z if video is None else z * self.video(video)).relu())


class OfOneMapping(Model):
    def forward(self, batch):
        return {"logits": super().forward(**batch), "other": None}


LABELS = torch.tensor([0, 1, 2, 0])
NAMES = ("audio", "video")
MUTE = {"audio": "audio", "video": "video"}


def inputs():
    return {"audio": torch.randn(4, 4), "video": torch.randn(4, 6)}


@pytest.mark.parametrize("kind", ["positional", "keywords", "one mapping"])
def test_other_inputs_are_zeroed_and_nothing_else_changes(kind):
    model = OfOneMapping() if kind == "one mapping" else Model()
    aux = bg.attach(model, NAMES, mute=MUTE)
    x = inputs()
    call = {"positional": lambda x: model(*x.values()), "keywords": lambda x: model(**x)}.get(kind, model)
    call(x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = aux.logits()
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    aux.detach()
    model.eval()
    for name in NAMES:
        wanted = call({other: v if other == name else torch.zeros_like(v) for other, v in x.items()})
        torch.testing.assert_close(found[name], wanted["logits"] if isinstance(wanted, dict) else wanted)


def test_losses_have_a_graph_and_release_the_batch():
    model = Model()
    aux = bg.attach(model, NAMES, mute=MUTE)
    joint = cross_entropy(model(**inputs()), LABELS)
    losses = aux.losses(joint, LABELS)
    scores = aux.scores(LABELS)
    bg.Uniform()(losses).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert scores["audio"] > 0
    with pytest.raises(RuntimeError, match="there is no batch since"):
        aux.logits()


def test_training_flags_come_back_when_the_model_fails():
    def failing(present):
        raise ZeroDivisionError

    model = Model()
    model.norm.eval()
    aux = bg.attach(model, NAMES, mute=failing)
    model(**inputs())
    with pytest.raises(ZeroDivisionError):
        aux.logits()
    assert model.head.training
    assert not model.norm.training


def test_a_missing_modality_is_left_out():
    model = Model()
    aux = bg.attach(model, NAMES, mute=MUTE)
    model(torch.randn(4, 4), None)
    assert list(aux.scores(LABELS)) == ["audio"]


def test_a_callback_runs_the_model_its_own_way():
    model, x = Model(), inputs()
    asked = []

    def mute(present):
        asked.append((present, model.training))
        return model(**{name: v if name in present else -v for name, v in x.items()})

    aux = bg.attach(model, NAMES, mute=mute)
    model(**x)
    aux.losses(None, LABELS)
    assert asked == [(("audio",), False), (("video",), False)]


def test_agm_takes_its_muted_passes_from_the_attachment():
    model = Model()
    aux = bg.attach(model, NAMES, mute=MUTE)
    balancer = bg.AGM(NAMES)
    for _ in range(3):
        logits = balancer.logits(model(**inputs()), aux.muted, LABELS)
        balancer({"joint": cross_entropy(logits, LABELS)}).backward()
    assert {k.item() for k in balancer.last.coefficients.values()} != {1.0}


def test_muted_passes_are_no_batch_for_other_attachments():
    model = Model()
    heads = bg.attach(model, {"audio": model.audio, "video": model.video}, num_outputs=3)
    muted = bg.attach(model, NAMES, mute=MUTE)
    x = inputs()
    model(**x)
    before = heads.logits()
    muted.logits()
    after = heads.logits()
    assert all(torch.equal(before[name], after[name]) for name in NAMES)


def test_several_arguments_and_token_ids():
    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.audio = nn.Embedding(7, 3), nn.Linear(2, 3)

        def forward(self, tokens, mask, audio):
            return (self.embed(tokens) * mask[..., None]).sum(1) + self.audio(audio)

    model = Text()
    aux = bg.attach(model, ("text", "audio"), mute={"text": ("tokens", "mask"), "audio": "audio"})
    tokens, audio = torch.randint(7, (4, 5)), torch.randn(4, 2)
    model(tokens, torch.ones(4, 5, dtype=torch.long), audio)
    torch.testing.assert_close(aux.logits()["audio"], model.audio(audio))


def test_bad_input():
    model = Model()
    with pytest.raises(ValueError, match=r"mute\['vidoe'\]: there is no such modality"):
        bg.attach(model, NAMES, mute={"vidoe": "video"})
    with pytest.raises(ValueError, match=r"mute= names no input of 'video'"):
        bg.attach(model, NAMES, mute={"audio": "audio"})
    with pytest.raises(ValueError, match="stop_gradient= has no meaning with mute="):
        bg.attach(model, NAMES, mute=MUTE, stop_gradient=True)
    aux = bg.attach(model, ("audio",), mute={"audio": "speech"})
    model(**inputs())
    with pytest.raises(ValueError, match=r"names no input that the model was called with: \['audio', 'video'\]"):
        aux.logits()
    other = bg.attach(model, ("audio",), mute={"audio": "audio"}, logits=lambda output: output.argmax())
    aux.detach()
    model(**inputs())
    assert other.logits()["audio"].dim() == 0
    other.detach()

    class NoLogits(Model):
        def forward(self, audio):
            return "none"

    model = NoLogits()
    aux = bg.attach(model, ("audio",), mute={"audio": "audio"})
    model(torch.randn(4, 4))
    with pytest.raises(TypeError, match="returned a str without logits; give logits="):
        aux.logits()
