"""``python -m bench.latent_theory``: one command per claim."""

import argparse
