"""A leaf of the graph that is no parameter: an input, or the output of a frozen embedding, that requires grad."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg

METHODS = {
    "MinNorm": bg.MinNorm,
    "MinNorm(include_exclusive=True)": lambda: bg.MinNorm(include_exclusive=True),
    "MinNorm(groups='tensor')": lambda: bg.MinNorm(groups="tensor"),
    "MMPareto": bg.MMPareto,
    "MMPareto(rescale='encoder')": lambda: bg.MMPareto(rescale="encoder"),
    "Gramian": lambda: bg.Gramian(lambda gramian: gramian.diagonal().rsqrt()),
    "MIMO(record_gramian=True)": lambda: bg.MIMO(record_gramian=True),
}
methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


class Tower(nn.Module):
    """Text from a frozen embedding, image from numbers: as adapters on a pretrained model leave it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 6).requires_grad_(False)
        self.text, self.image = nn.Linear(6, 5), nn.Linear(4, 5)
        self.text_head, self.image_head, self.fused = nn.Linear(5, 3), nn.Linear(5, 3), nn.Linear(10, 3)

    def losses(self, *, wants_grad, scale=1.0, size=8):
        generator = torch.Generator().manual_seed(1)
        ids, x = torch.randint(20, (size, 7), generator=generator), torch.randn(size, 4, generator=generator)
        labels = torch.randint(3, (size,), generator=generator)
        self.leaf = scale * self.embedding(ids).detach()
        if wants_grad:
            self.leaf.requires_grad_()
        text, image = self.text(self.leaf / scale).tanh().mean(1), self.image(x).tanh()
        return {
            "joint": cross_entropy(self.fused(torch.cat([text, image], 1)), labels),
            "text": cross_entropy(self.text_head(text), labels),
            "image": cross_entropy(self.image_head(image), labels),
        }


def step(balancer, *, accumulate=1, **options):
    model = Tower()
    for _ in range(accumulate):
        balancer(model.losses(**options)).backward()
    return model, [p.grad for p in model.parameters() if p.requires_grad]


@methods
@pytest.mark.parametrize("scale", [1.0, 1e-3])  # of a quiet recording: the gradient at the input is large
def test_it_changes_no_weight_and_no_gradient(make, scale):
    without, with_ = make(), make()
    _, plain = step(without, wants_grad=False, scale=scale)
    _, got = step(with_, wants_grad=True, scale=scale)
    torch.testing.assert_close(with_.last.gramian, without.last.gramian)
    torch.testing.assert_close(with_.last.weights, without.last.weights)
    torch.testing.assert_close(got, plain)


@methods
def test_it_gets_the_weighted_sum(make):
    balancer = make()
    model, _ = step(balancer, wants_grad=True)
    leaf = model.leaf
    losses = model.losses(wants_grad=True)  # the same batch again
    rows = [torch.autograd.grad(x, model.leaf, retain_graph=True, allow_unused=True)[0] for x in losses.values()]
    weights = balancer.last.weights
    weights = torch.ones(3) if weights.dim() > 1 else weights  # several problems: none of them holds this leaf
    want = sum(w.float() * row for w, row in zip(weights, rows, strict=True) if row is not None)
    torch.testing.assert_close(leaf.grad, want)


@pytest.mark.parametrize("make", [bg.MinNorm, bg.MMPareto])
def test_it_is_in_no_window_of_accumulated_rows(make):
    def run(wants_grad):
        model, balancer = Tower(), make()
        parameters = [p for p in model.parameters() if p.requires_grad]
        bg.BalancedOptimizer(torch.optim.SGD(parameters, lr=0.1), balancer, accumulate="rows")
        leaves = []
        for size in (8, 5):
            balancer(model.losses(wants_grad=wants_grad, size=size)).backward()
            leaves.append(model.leaf)
        return balancer, [p.grad for p in parameters], leaves

    (without, plain, _), (with_, got, leaves) = run(False), run(True)
    torch.testing.assert_close(with_.last.weights, without.last.weights)
    torch.testing.assert_close(got, plain)
    assert all(leaf.grad is not None for leaf in leaves)


def test_bogc_gives_it_the_ordinary_gradient():
    grads = []
    for wants_grad in (False, True):
        model = Tower()
        balancer = bg.BOGC({"text": model.text, "image": model.image})
        balancer(model.losses(wants_grad=wants_grad)).backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*grads)
    assert model.leaf.grad is not None


def test_with_params_it_gets_none_as_documented():
    model = Tower()
    bg.MinNorm(params=model)(model.losses(wants_grad=True)).backward()
    assert model.leaf.grad is None
    assert model.text.weight.grad is not None


def test_where_no_leaf_is_a_parameter_all_are_balanced():
    w = torch.zeros(2, requires_grad=True)
    balancer = bg.MinNorm(normalize="none", rescale="none")
    balancer({"joint": 2 * w[0] + w[1], "audio": -w[0] + w[1]}).backward()
    torch.testing.assert_close(w.grad, torch.tensor([0.0, 1.0]))


def test_a_loss_that_reaches_such_a_leaf_alone_keeps_weight_one():
    model = Tower()
    losses = model.losses(wants_grad=True)
    losses["saliency"] = model.leaf.square().sum()
    balancer = bg.MinNorm()
    balancer(losses).backward()
    assert balancer.last.to_dict()["weights"]["saliency"] == 1.0


class TestRealModels:
    """Waveforms that require grad, and adapters under activation checkpointing: tiny random configurations."""

    def test_wav2vec2(self):
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.Wav2Vec2Config(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            conv_dim=(8,),
            conv_stride=(5,),
            conv_kernel=(10,),
            num_feat_extract_layers=1,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            mask_time_prob=0.0,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            layerdrop=0.0,
            feat_proj_dropout=0.0,
        )
        audio, video = transformers.Wav2Vec2Model(config).train(), nn.Linear(6, 16)
        heads = nn.ModuleDict({"audio": nn.Linear(16, 1), "video": nn.Linear(16, 1), "joint": nn.Linear(32, 1)})
        model = nn.ModuleList([audio, video, heads])
        frames, wave = torch.randn(4, 6), 0.01 * torch.randn(4, 400)

        def losses():
            a, v = audio(wave).last_hidden_state.mean(1), video(frames)
            features = {"joint": torch.cat([a, v], 1), "audio": a, "video": v}
            return {name: heads[name](z).square().mean() for name, z in features.items()}

        default, named = bg.MinNorm(), bg.MinNorm(params=model)
        default(losses()).backward()
        named(losses()).backward()
        torch.testing.assert_close(default.last.weights, named.last.weights)
        torch.testing.assert_close(default.last.gramian, named.last.gramian)

    @pytest.mark.filterwarnings("ignore")  # what transformers and peft say of themselves
    def test_adapters_under_activation_checkpointing(self):
        transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")

        def weights(checkpointing):
            torch.manual_seed(0)
            config = transformers.LlamaConfig(
                vocab_size=40,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
            )
            text = peft.get_peft_model(
                transformers.LlamaModel(config), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
            )
            for name, p in text.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(p, std=0.3)
            if checkpointing:
                text.enable_input_require_grads()
                text.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            text.train()
            image = nn.Linear(5, 8)
            heads = nn.ModuleDict({"text": nn.Linear(16, 3), "image": nn.Linear(8, 3), "joint": nn.Linear(24, 3)})
            t, i = text(torch.arange(24).view(4, 6)).last_hidden_state.mean(1), image(torch.ones(4, 5)).tanh()
            features = {"joint": torch.cat([t, i], 1), "text": t, "image": i}
            balancer = bg.MinNorm()
            losses = {name: cross_entropy(heads[name](z), torch.tensor([0, 1, 2, 0])) for name, z in features.items()}
            balancer(losses).backward()
            return balancer.last.weights

        torch.testing.assert_close(weights(True), weights(False))
