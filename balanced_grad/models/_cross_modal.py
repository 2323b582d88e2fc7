from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from balanced_grad.capture import JOINT
from balanced_grad.choices import check_choice
from balanced_grad.models._vi_branch import Branch, Modality
from balanced_grad.models._vi_fill_in import NOTHING, Cut, FillIn, Recurrence, Revealed, Schedule
from balanced_grad.models._vi_likelihoods import Likelihood
from balanced_grad.models._vi_objective import Kind, Objective, Reduction, Settings, evaluate
from balanced_grad.models._vi_presence import Batch, Inputs, Known, Present, read

Loop = Literal["input", "latent"]
Start = Literal["scaled", "zero"]


class CrossModalVI(nn.Module):
    """Predicts the modalities that an item lacks from those it has, by ``K`` mean-field steps trained end to end.

    With observed modalities ``O`` of ``M``, encoders ``f_k``, weights ``U_k (H, d_k)``, an activation ``φ`` and
    decoders ``D_k``:

        a   = Σ_{k in O} U_k f_k(x_k)
        h⁰  = φ(M/|O| a + b)                              h⁰ = φ(b) of nothing
        x̂_q = mean of D_q(h^{i-1})                        for q not in O
        h^i = φ(a + Σ_{q not in O} U_q f_q(x̂_q) + b)      i = 1 .. K

    It is trained to minimise the variation of information ``VI(x, y) = H(x|y) + H(y|x)``: the loss of a modality is
    ``-log p(x_k | the others)`` after ``K`` steps (``objective``). With everything observed it is a joint encoder.

    Source: Sohn, Shang & Lee, "Improved Multimodal Deep Learning with Variation of Information" (2014), from its
    abstract and a description of its released code; more than two modalities by leaving one out at a time, untied
    weights, likelihoods other than Bernoulli, masks per item and damping are our reading.

    Args:
        modalities: name -> what its entries are (``Bernoulli(32)``, ``Gaussian(10)``, ``Categorical(5)``), with
            ``f_k`` the identity; or a ``Modality`` with an encoder and a decoder of its own.
        hidden: ``H``, width of the shared hidden layer.
        steps: ``K`` ≥ 0, in training and after it. Default 5, as the released code for image halves.
        tied: ``D_k`` begins with ``U_kᵀ``, as in a restricted Boltzmann machine (default), or with weights of its own.
        activation: ``φ``, a module on ``(B, H)``. Default: the logistic sigmoid, as the source; for deep encoders
            ``nn.Sequential(nn.LayerNorm(H), nn.SiLU())``, say.
        loop: what a prediction sends back: ``"input"`` (default), its mean through the encoder again; ``"latent"``,
            the decoder's first layer alone, cheaper where encoders are large, and for untied weights more free.
        start: ``h⁰`` from the observed drive times ``M/|O|`` (``"scaled"``, default), or as it is (``"zero"``), which
            is to fill in zeros: with ``steps=0`` the auto-encoder that the method is compared with.
        damping: share of the old state in the new one, in [0, 1). Default 0, as the source. With other activations or
            untied weights nothing makes the steps settle, and they may swing between two states: then 0.5.
        tolerance: in evaluation mode, stop when no item's mean ``|h^i - h^{i-1}|`` reaches it. Default 1e-5, as the
            source. On the CPU only: on other devices looking would wait, so all steps are run.

    An encoder is called once per step on its own modality's predictions: prefer layer norm to batch norm in it.

    Raises:
        ValueError: for fewer than two modalities, one named ``"joint"``, settings out of range; at a call, for unknown
            names, wrong shapes, present values outside their likelihood's support.

    Examples:
        >>> import torch
        >>> from balanced_grad.models import Bernoulli, CrossModalVI
        >>> vi = CrossModalVI({"left": Bernoulli(32), "right": Bernoulli(32)}, hidden=16, steps=5)
        >>> x = torch.rand(4, 64)
        >>> losses = vi.objective({"left": x[:, :32], "right": x[:, 32:]}).losses
        >>> {name: loss.shape for name, loss in losses.items()}
        {'left': torch.Size([]), 'right': torch.Size([])}
        >>> out = vi({"left": x[:, :32]})
        >>> out.hidden.shape, out.filled["right"].shape
        (torch.Size([4, 16]), torch.Size([4, 32]))
    """

    def __init__(
        self,
        modalities: Mapping[str, Likelihood | Modality],
        hidden: int,
        *,
        steps: int = 5,
        tied: bool = True,
        activation: nn.Module | None = None,
        loop: Loop = "input",
        start: Start = "scaled",
        damping: float = 0.0,
        tolerance: float = 1e-5,
    ) -> None:
        super().__init__()
        if len(modalities) < 2:
            raise ValueError(f"{list(modalities)}: give at least two modalities; one has no other to predict it from")
        if JOINT in modalities:
            raise ValueError(f"a modality cannot be named {JOINT!r}, the name of the fused prediction's loss")
        if hidden < 1:
            raise ValueError(f"hidden={hidden!r}: give a positive number of units")
        check_choice("loop", loop, Loop)
        check_choice("start", start, Start)
        if not 0 <= damping < 1:
            raise ValueError(f"damping={damping!r}: give a share in [0, 1)")
        if not tolerance >= 0:
            raise ValueError(f"tolerance={tolerance!r}: give a number >= 0 (0: always run all steps)")
        self.names = tuple(modalities)  # a list of modules, not a ModuleDict: a modality may be called anything
        self.branches = nn.ModuleList(Branch(name, modality, hidden, tied) for name, modality in modalities.items())
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.activation = nn.Sigmoid() if activation is None else activation
        self.steps = _steps(steps)
        self.tied = tied
        self.loop = loop
        self.start = start
        self.damping = damping
        self.tolerance = tolerance

    def forward(self, inputs: Inputs, present: Present | None = None, *, steps: int | None = None) -> FillIn:
        """Represent a batch and fill in what it lacks.

        Args:
            inputs: modality -> ``(B, *shape)``; leave the key out, or give None, where the whole batch lacks it.
            present: modality -> ``(B,)`` boolean, for modalities that some items lack. Whatever stands in their slots,
                NaN included, has no influence. Masks may stay on the CPU, where looking at them is free.
            steps: ``K`` of this call, default as constructed. Run a model with the number it was trained with.
        """
        batch = self._read(inputs, present)
        return self._run(batch, batch.known, steps)

    def objective(
        self,
        inputs: Inputs,
        present: Present | None = None,
        *,
        kind: Kind = "vi",
        steps: int | None = None,
        back_steps: int | None = None,
        cut: Cut = "state",
        reveal: float = 0.0,
        hide: float | None = None,
        sparsity: float = 0.0,
        sparsity_target: float = 0.1,
        reduction: Reduction = "mean",
        generator: torch.Generator | None = None,
    ) -> Objective:
        """One loss per modality for a balancer, and the runs behind them.

        Each run hides modalities and predicts them after ``K`` steps; an item counts for a modality that it has and
        that was hidden, where it has another one to predict from. A modality that no item can teach is left out of
        the losses, or, where only a mask on a device could tell, has loss zero and no gradient.

        Args:
            inputs: as for a call.
            present: as for a call.
            kind: ``"vi"`` (default), each modality hidden in turn, ``M`` runs; with two this is the source's
                ``-log p(x|y) - log p(y|x)``, with more a pseudo-likelihood (ours). ``"subsets"``, one run in which
                each item keeps a random non-empty part of its modalities. And three baselines: ``"entries"``, one run
                that hides random entries of all modalities and predicts these, as multi-prediction training of deep
                Boltzmann machines (Goodfellow, Mirza, Courville & Bengio, 2013), with which the source compares;
                ``"predict-all"``, the runs of ``"vi"`` that predict what was observed too; ``"autoencoder"``, one run
                that hides nothing.
            steps: ``K``, default as constructed.
            back_steps: back-propagate through so many of the last steps, at least 1; default all.
            cut: what is a constant where back-propagation ends. ``"state"`` (default, ours): the hidden state that
                enters the first of the last ``back_steps`` steps. ``"prediction"``, as in the released code: the
                prediction that enters the step before them. That code begins with 1 and adds one every 20 epochs:
                ``back_steps=1 + epoch // 20, cut="prediction"``.
            reveal: show up to this share of the hidden entries and predict the rest (multi-prediction). Default 0; the
                source has 0.25 for image halves. Per item a uniform share is drawn, then each entry.
            hide: for ``kind="entries"``, the chance of each entry to be hidden, in (0, 1). Default 0.5, with which all
                subsets are equally likely. There ``h⁰`` has the gain ``M / Σ_k (share of k that is shown)``, which is
                ``M/|O|`` where whole modalities are shown (ours), and an item with one modality counts, too.
            sparsity: weight of ``Σ_j KL(sparsity_target ‖ mean h_j^K)``. Default 0; the source has 0.1 at 0.1. Needs
                the sigmoid.
            sparsity_target: wanted mean activation of a unit.
            reduction: ``"mean"`` (default), in nats per entry, so that a wide modality does not outweigh a narrow one;
                ``"sum"``, in nats per item.
            generator: source of the random masks.

        Raises:
            ValueError: for settings out of range or without meaning together.
        """
        settings = Settings(kind, reduction, reveal, hide, sparsity, sparsity_target)
        if (reveal or kind == "entries") and self.loop == "latent":
            name = "reveal" if reveal else "kind='entries'"
            raise ValueError(f"{name} needs loop='input': entries that are revealed go in through the encoder")
        if sparsity and not isinstance(self.activation, nn.Sigmoid):
            raise ValueError(f"sparsity needs the default activation, a sigmoid; this one is {self.activation}")
        if back_steps is not None and back_steps < 1:
            raise ValueError(f"back_steps={back_steps!r}: give a number >= 1, or None for all steps")
        check_choice("cut", cut, Cut)
        if back_steps is None and cut != "state":
            raise ValueError(f"cut={cut!r} has no meaning without back_steps=, which says where")
        batch = self._read(inputs, present)

        def run(visible: Mapping[str, Known], revealed: Revealed) -> FillIn:
            return self._run(batch, visible, steps, back_steps, cut, revealed)

        return evaluate(batch, self._branches(), settings, generator, run)

    @torch.no_grad()
    def fit_biases(self, inputs: Inputs, present: Present | None = None) -> None:
        """Start from the mean of these data: what is predicted with zero weights.

        Sets top-down biases and learnt variances.
        Of a decoder of your own only a single linear layer has a bias that this knows; variances are always set.
        """
        batch = self._read(inputs, present)
        for name, branch in self._branches().items():
            known = batch.known[name]
            if known is False:
                continue
            x = batch.inputs[name]
            constant = branch.likelihood.fit(x if known is True else x[known])
            if isinstance(branch.decoder, nn.Identity):
                branch.bias.copy_(constant)
            elif isinstance(branch.decoder, nn.Linear):
                branch.decoder.bias.copy_(constant)

    def extra_repr(self) -> str:
        """Settings."""
        return (
            f"{', '.join(self.names)}, hidden={len(self.bias)}, steps={self.steps}, tied={self.tied}, "
            f"loop={self.loop!r}, start={self.start!r}, damping={self.damping}, tolerance={self.tolerance}"
        )

    def _branches(self) -> dict[str, Branch]:
        return dict(zip(self.names, self.branches, strict=True))  # type: ignore[arg-type]  # it holds branches only

    def _read(self, inputs: Inputs, present: Present | None) -> Batch:
        likelihoods = {name: branch.likelihood for name, branch in self._branches().items()}
        return read(likelihoods, inputs, present, self.bias)

    def _run(
        self,
        batch: Batch,
        visible: Mapping[str, Known],
        steps: int | None,
        back_steps: int | None = None,
        cut: Cut = "state",
        revealed: Revealed = NOTHING,
    ) -> FillIn:
        count = self.steps if steps is None else _steps(steps)
        schedule = Schedule(
            steps=count,
            back_steps=count if back_steps is None else back_steps,
            cut=cut,
            damping=self.damping,
            tolerance=None if self.training else self.tolerance,
            latent=self.loop == "latent",
            scaled=self.start == "scaled",
        )
        nothing = self.bias.new_zeros(batch.size, len(self.bias))
        return Recurrence(self._branches(), self._activate, batch.inputs, visible, nothing, schedule, revealed).run()

    def _activate(self, drive: Tensor) -> Tensor:
        hidden: Tensor = self.activation(drive + self.bias)
        return hidden


def _steps(steps: int) -> int:
    if steps < 0:
        raise ValueError(f"steps={steps!r}: give a number of mean-field steps >= 0")
    return steps
