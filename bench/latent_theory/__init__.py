"""What Huang et al. prove of latent quality, put to numbers where everything is known.

    python -m bench.latent_theory subset     # theorem 3: no subset beats its superset in the composite linear class
    python -m bench.latent_theory terms      # theorems 1 and 2: their terms beside what they bound
    python -m bench.latent_theory reversal --plot docs/images/latent-reversal.png
    BALANCED_GRAD_DATA=DIR python -m bench.latent_theory gains --plot docs/images/latent-gains.png

``subset``: random linear problems, all risks in closed form from their moments. ``terms``: linear functions of bounded
norm, a bounded loss, the Rademacher complexity in closed form and by drawing signs. ``reversal``: a second modality of
100 numbers that say little each, least squares, measured by ``sample_size_curve`` from few items to many. ``gains``:
γ of the refitted head beside the accuracy that the networks themselves gain, on real sets.

Huang et al., "What Makes Multi-modal Learning Better than Single (Provably)" (NeurIPS 2021). Its proofs and the exact
statement of theorem 3 could not be read; what was filled in is named *our reading* in ``docs/does-it-help.md``.
"""
