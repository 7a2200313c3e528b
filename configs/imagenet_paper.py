"""The paper's own recipe on ImageNet (arXiv 1409.4842, section 6).

    gnet prepare tfds:imagenet2012 --manual-dir DOWNLOADS
    python train.py imagenet_paper

SGD with momentum 0.9, a learning rate reduced by 4 % every 8 epochs, Polyak averaging of the
evaluated weights, crops with 8 to 100 % of the area and aspect 3/4 to 4/3, photometric distortions,
a random interpolation per crop, auxiliary losses times 0.3, dropout 0.4 (0.7 in auxiliary heads).
The paper does not state the batch size, learning rate or weight decay; 32, 0.01, 2e-4 and 250
epochs come from Caffe's solver (BVLC/caffe, models/bvlc_googlenet/solver.prototxt). Averaging over
the last tenth of the run is a choice of this recipe.

The paper reports a top-5 error of 10.07 % for one network and one crop per image. This recipe has
not been run here. Without batch norm the main head can fail to learn for a long time; in that case
the run prints a warning.

According to `gnet plan imagenet_paper --topology v5e:2x4`, a step on eight TPU v5e chips takes at
least 0.94 ms, and 250 epochs take at least 2 h 36 min. On 2 CPU cores, at 12 images/s, 250 epochs
take ten months.
"""

from gnet_jax.config import AugmentConfig, Config, DataConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/imagenet_paper",
        epochs=250,
        batch_size=32,
        eval_batch_size=128,
        save_every_steps=5000,
        log_every_steps=200,
        data=DataConfig(source="tfds:imagenet2012", threads=16),
        augment=AugmentConfig(interpolation="random", brightness=0.5, contrast=0.5, saturation=0.5),
        optim=OptimConfig(
            learning_rate=0.01,
            schedule="step",
            decay_rate=0.96,
            decay_epochs=8,
            averaging="polyak",
            average_from=225,
        ),
    )
