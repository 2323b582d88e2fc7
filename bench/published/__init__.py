"""Time of the balancing subroutine: our methods, the released torchjd, and the loops that the field runs.

    python -m bench.published                                       # three models, about half an hour on a core
    python -m bench.published --dataset large --modalities 3 --rounds 50 --results published.json
    python -m bench.published --dataset resnet transformer --methods MIMO "MinNorm, parameters" "torchjd MGDA"

The subroutine is everything from the end of the ordinary forward pass to the final ``.grad``; what a method runs
besides, such as AGM's passes with muted inputs, belongs to it. Every method has a network of its own with the same
initial weights, in one process; they take turns, batch by batch, so that the machine's mood is shared. A turn is two
steps, of which the second is timed: the first brings the method's own weights back into the cache.

* ``loop`` rows are our re-implementations of published training loops, written from their descriptions: see
  ``_loops`` and ``_agm``.
* ``torchjd`` rows call the released package.
* ``x joint`` and ``x MIMO``: ratio of the medians of the subroutine's time; the JSON also has the medians of the ratios
  within a round. ``extra ms``: median over rounds of the difference to the plain joint step; ``extra x MIMO``: the
  ratio of these, left out where MIMO's is not above the noise (its lower quartile is not positive). Which of the two
  "subroutine time" means in the MIMO paper (Fernando et al., 2025) could not be read, so both are printed, in brackets
  with 90 % intervals of the ratio from a bootstrap over rounds; ``> x``: MIMO's extra is in the noise, and with it the
  interval has no upper end.
* ``step x joint``: whole steps, forward and optimizer included.
* ``extra MiB``: peak memory of a method's first two steps above the joint method's; see ``_memory``.

On a machine that others use, ``--clock cpu`` counts the processor's time, which they disturb less.

The models see random batches of 64: times do not depend on values, but for the iterations of the solvers.
"""
