"""Every method, the model it is tried on, and the gradient that it should give, written out by hand in float64."""

import itertools
import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg

MODALITIES = ("audio", "video")
ENCODERS = {"audio": 4, "video": 6}  # widths of the inputs


class Model(nn.Module):
    """Late fusion with a head per modality, and a balancer that may be called inside or outside of ``forward``."""

    def __init__(self, make, *, inside=False, logits=False, heads=True):
        super().__init__()
        torch.manual_seed(0)
        self.audio, self.video = nn.Linear(4, 8), nn.Linear(6, 8)
        self.fused = nn.Linear(16, 3)
        if heads:
            self.audio_head, self.video_head = nn.Linear(8, 3), nn.Linear(8, 3)
        self.inside, self.logits = inside, logits
        if make is not None:
            self.balancer = make(self)

    def encoders(self):
        return {"audio": self.audio, "video": self.video}

    def outputs(self, audio, video, labels):
        """Losses, features and fused logits."""
        features = {"audio": self.audio(audio), "video": self.video(video)}
        a, v = (z.tanh() for z in features.values())
        fused = self.fused(torch.cat([a, v], 1))
        losses = {"joint": cross_entropy(fused, labels)}
        if hasattr(self, "audio_head"):
            losses |= {
                "audio": cross_entropy(self.audio_head(a), labels),
                "video": cross_entropy(self.video_head(v), labels),
            }
        return losses, features, fused

    def forward(self, audio, video, labels):
        losses, features, fused = self.outputs(audio, video, labels)
        if not self.inside:
            return losses, features
        out = {"loss": scalar(self.balancer, losses, features)}
        return out | {"logits": fused} if self.logits else out


def scalar(balancer, losses, features):
    return balancer(losses, features=features) if balancer.level == "features" else balancer(losses)


def batch(seed=0, size=12):
    generator = torch.Generator().manual_seed(seed)
    inputs = {name: torch.randn(size, width, generator=generator) for name, width in ENCODERS.items()}
    return inputs | {"labels": torch.randint(3, (size,), generator=generator)}


def inverse_lengths(gramian):
    """A rule from a Gramian to weights."""
    return gramian.diagonal().rsqrt()


METHODS = {
    "Uniform": lambda model: bg.Uniform(),
    "MIMO": lambda model: bg.MIMO(),
    "MIMO(params=)": lambda model: bg.MIMO(params=model),
    "MIMO(record_gramian=True)": lambda model: bg.MIMO(record_gramian=True),
    "MinNorm": lambda model: bg.MinNorm(),
    "MinNorm(level='features')": lambda model: bg.MinNorm(level="features"),
    "MMPareto": lambda model: bg.MMPareto(rescale="encoder"),
    "Gramian": lambda model: bg.Gramian(inverse_lengths, normalize=False),
    "OGM": lambda model: bg.OGM(model.encoders(), noise=0.0),
    "MLB": lambda model: bg.MLB(model.encoders()),
    "DGL": lambda model: bg.DGL(model.encoders()),
    "BOGC": lambda model: bg.BOGC(model.encoders()),
    "HeldOut(MinNorm)": lambda model: bg.HeldOut(bg.MinNorm()),
}


def expected(name, inputs, make_losses=None, model=None):
    """Parameter name -> gradient of one whole batch, float64."""
    model = Model(None) if model is None else model
    model = model.double()
    inputs = {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}
    losses, features, _ = model.outputs(**inputs) if make_losses is None else make_losses(model, inputs)
    parameters = dict(model.named_parameters())
    rows = {loss: _grads(value, parameters.values()) for loss, value in losses.items()}
    at = {loss: _grads(value, features.values()) for loss, value in losses.items()}
    values = {loss: value.item() for loss, value in losses.items()}
    rule = _RULES[name]
    weights = rule(values, rows, at, list(parameters))  # parameter -> loss -> weight
    out = {}
    for position, parameter in enumerate(parameters):
        parts = [weights[parameter][k] * rows[k][position] for k in losses if rows[k][position] is not None]
        out[parameter] = sum(parts) if parts else None
    return out


def _grads(value, wanted):
    return torch.autograd.grad(value, list(wanted), retain_graph=True, allow_unused=True)


def _same(weights):
    return lambda values, rows, at, names: dict.fromkeys(names, weights(values, rows, at))


def _mimo(values, rows, at):
    modalities = [k for k in values if k != "joint"]
    total = sum(math.exp(values[m] / 0.3) for m in modalities)
    return {"joint": 1.0} | {m: len(modalities) * math.exp(values[m] / 0.3) / total for m in modalities}


def _gram(rows, positions):
    """Inner products over the tensors at these positions; a loss that does not reach one is zero there."""
    return {
        (k, n): sum(
            float((rows[k][i] * rows[n][i]).sum())
            for i in positions
            if rows[k][i] is not None and rows[n][i] is not None
        )
        for k in rows
        for n in rows
    }


def _meeting(rows):
    count = len(next(iter(rows.values())))
    return [i for i in range(count) if sum(rows[k][i] is not None for k in rows) > 1]


def _square(gram, weights):
    return sum(weights[k] * weights[n] * gram[k, n] for k in weights for n in weights)


def _min_norm_point(gram, names):
    """By the optimality conditions of every face."""
    best = None
    for size in range(1, len(names) + 1):
        for face in itertools.combinations(names, size):
            system = torch.ones(size + 1, size + 1, dtype=torch.float64)
            system[:size, :size] = torch.tensor([[gram[k, n] for n in face] for k in face], dtype=torch.float64)
            system[size, size] = 0
            right = torch.zeros(size + 1, dtype=torch.float64)
            right[size] = 1
            solution = torch.linalg.lstsq(system, right).solution[:size].tolist()
            if min(solution) < -1e-12:
                continue
            weights = dict.fromkeys(names, 0.0) | dict(zip(face, solution, strict=True))
            if best is None or _square(gram, weights) < _square(gram, best):
                best = weights
    return best


def _min_norm(gram, names):
    lengths = {k: math.sqrt(gram[k, k]) for k in names}
    scaled = {(k, n): gram[k, n] / lengths[k] / lengths[n] for k in names for n in names}
    weights = {k: w / lengths[k] for k, w in _min_norm_point(scaled, names).items()}
    total = sum(weights.values())
    weights = {k: w / total for k, w in weights.items()}
    plain = math.sqrt(_square(gram, dict.fromkeys(names, 1.0)))
    factor = min(plain / math.sqrt(_square(gram, weights)), len(names))
    weights = {k: factor * w for k, w in weights.items()}
    return weights | {"joint": max(1.0, weights["joint"])}


def _mmpareto(values, rows, at, names):
    out = {}
    for position, name in enumerate(names):
        here = [k for k in rows if rows[k][position] is not None]
        if len(here) < 2:
            out[name] = dict.fromkeys(rows, 1.0)
            continue
        alike = [i for i in range(len(names)) if [k for k in rows if rows[k][i] is not None] == here]
        gram = _gram({k: rows[k] for k in here}, alike)
        plain = dict.fromkeys(here, 1.0)
        conflict = any(gram[pair] <= 0 for pair in itertools.combinations(here, 2))
        weights = {k: 2 * w for k, w in _min_norm_point(gram, here).items()} if conflict else plain
        factor = max(1.0, math.sqrt(_square(gram, plain) / _square(gram, weights)))
        out[name] = dict.fromkeys(rows, 1.0) | {k: 1.5 * factor * w for k, w in weights.items()}
    return out


def _modulated(coefficient):
    def rule(values, rows, at, names):
        scores = {m: math.exp(-values[m]) for m in MODALITIES}
        factors = {
            "audio": coefficient(scores["audio"] / scores["video"]),
            "video": coefficient(scores["video"] / scores["audio"]),
        }
        return {name: dict.fromkeys(rows, factors.get(name.split(".")[0], 1.0)) for name in names}

    return rule


def _ogm(ratio):
    return 1 - math.tanh(0.3 * (ratio - 1)) if ratio > 1 else 1.0


def _mlb(ratio):
    return 1 + math.tanh(0.8 * (1 / ratio - 1))


def _dgl(values, rows, at, names):
    out = {}
    for position, name in enumerate(names):
        owner = name.split(".")[0]
        if owner in MODALITIES:
            out[name] = dict.fromkeys(rows, 0.0) | {owner: 4.0}
        elif rows["joint"][position] is not None:
            out[name] = dict.fromkeys(rows, 0.0) | {"joint": 1.0}
        else:
            out[name] = dict.fromkeys(rows, 4.0)
    return out


def _inverse(values, rows, at):
    gram = _gram(rows, _meeting(rows))
    return {k: 1 / math.sqrt(gram[k, k]) for k in rows}


_RULES = {
    "Uniform": _same(lambda values, rows, at: dict.fromkeys(values, 1.0)),
    "MIMO": _same(_mimo),
    "MIMO(params=)": _same(_mimo),
    "MIMO(record_gramian=True)": _same(_mimo),
    "MinNorm": _same(lambda values, rows, at: _min_norm(_gram(rows, _meeting(rows)), list(rows))),
    "MinNorm(level='features')": _same(lambda values, rows, at: _min_norm(_gram(at, _meeting(at)), list(at))),
    "MMPareto": _mmpareto,
    "Gramian": _same(_inverse),
    "OGM": _modulated(_ogm),
    "MLB": _modulated(_mlb),
    "DGL": _dgl,
    "HeldOut(MinNorm)": _same(lambda values, rows, at: _min_norm(_gram(rows, _meeting(rows)), list(rows))),
}


def bogc(inputs):
    """Of BOGC, whose evidence has a reference of its own in its tests: one process, one plain loop."""
    model = Model(METHODS["BOGC"])
    losses, features = model(**inputs)
    scalar(model.balancer, losses, features).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def reference(name, inputs):
    return bogc(inputs) if name == "BOGC" else expected(name, inputs)


def error(model, wanted, *, clip=None):
    """Largest relative difference of a parameter's gradient from the one wanted."""
    if clip is not None:
        norm = torch.stack([g.double().norm() for g in wanted.values() if g is not None]).norm()
        factor = min(1.0, clip / (float(norm) + 1e-6))
        wanted = {name: None if grad is None else grad * factor for name, grad in wanted.items()}
    worst = 0.0
    for name, parameter in model.named_parameters():
        want, got = wanted[name], parameter.grad
        if want is None or got is None:
            worst = max(worst, 0.0 if (want is None or not want.any()) and (got is None or not got.any()) else math.inf)
        else:
            worst = max(worst, float((got.double() - want).norm() / want.norm().clamp_min(1e-9)))
    return worst
