"""The held-out guard beside other signals, its error rates, and its cost.

    python -m bench.guard candidates --results candidates.jsonl   # other signals, on five sets: about half an hour
    python -m bench.guard table candidates.jsonl                  # the tables of these results again
    python -m bench.guard simulate                                # false shutdowns and missed harm: about a minute
    python -m bench.guard null                                    # shutdowns by noise alone: seconds
    python -m bench.guard cost                                    # time per step: about a minute

``candidates``: every signal steers the weights of one method, the plain sum of the joint and the uni-modal losses, from
the same held-out split of the training part, in the accuracy study's recipe. One long run gives two numbers: at the
checkpoint chosen on validation, and after the last epoch. ``mfeat`` and ``wiki`` are read from ``$BALANCED_GRAD_DATA``.

``simulate``: item losses are drawn, so that the true share of the gain that carries over is known; the library's own
estimate is fed with them.

``null``: both losses have the same mean at every check, so that every low factor is wrong.

``cost``: an ordinary step, the guard's part in it, and a check take turns.
"""
