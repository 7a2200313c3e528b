"""Fit a logistic regression on frozen pool5 features, the baseline for fine-tuning.

    python benchmarks/linear_probe.py models/googlenet PHOTOS

PHOTOS has train/CLASS/*, val/CLASS/* and test/CLASS/*. The regularisation strength is chosen on
the validation split; the test split is scored once.
"""

import sys
import time

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from gnet_jax.data.augment import preprocess
from gnet_jax.data.batches import eval_batches
from gnet_jax.data.sources import open_source
from gnet_jax.model.googlenet import endpoints
from gnet_jax.model_folder import TrainedModel, read_folder

STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 1.0)


def features_of(folder: TrainedModel, data: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns pool5 features (N, C) float32 of a split's central crops, and labels (N,)."""

    @jax.jit
    def pooled(images):
        pixels = preprocess(images, preprocessing=folder.preprocessing)
        return endpoints(folder.model, folder.variables, pixels)["pool5/7x7_s1"]

    features, labels = [], []
    source = open_source(data, split)  # pyright: ignore[reportArgumentType]
    for batch in eval_batches(source, batch_size=32, preprocessing=folder.preprocessing, threads=2):
        features.append(np.asarray(pooled(batch["image"]))[batch["mask"]])
        labels.append(batch["label"][batch["mask"]])
    return np.concatenate(features), np.concatenate(labels)


def main(model: str, data: str) -> None:
    """Print the validation accuracy of every strength, and the test accuracy of the best one."""
    folder, start = read_folder(model), time.perf_counter()
    (x, y), (x_val, y_val), (x_test, y_test) = (
        features_of(folder, data, split) for split in ("train", "val", "test")
    )
    scored = []
    for strength in STRENGTHS:
        regression = make_pipeline(
            StandardScaler(), LogisticRegression(C=strength, max_iter=2000)
        ).fit(x, y)
        scored.append((regression.score(x_val, y_val), strength, regression))
        print(f"C {strength:<6g} validation top-1 {scored[-1][0]:.2%}", flush=True)
    best = max(scored, key=lambda each: each[0])
    seconds = time.perf_counter() - start
    print(
        f"chosen C {best[1]:g}: validation top-1 {best[0]:.2%}, test top-1 "
        f"{best[2].score(x_test, y_test):.2%} of {len(y_test)} images, {seconds / 60:.1f} min"
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python {sys.argv[0]} MODEL PHOTOS")
    main(*sys.argv[1:])
