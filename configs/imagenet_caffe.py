"""The recipe behind the published Caffe weights (BVLC/caffe, quick_solver.prototxt), on ImageNet.

    gnet prepare tfds:imagenet2012 --manual-dir DOWNLOADS
    python train.py imagenet_caffe

The learning rate is 0.01 * (1 - t)^0.5, where t rises from 0 to 1 during training; biases learn at
twice that rate. Batch 32, 60 epochs (2.4 million steps), weight decay 2e-4. Images are warped to
256x256; a random 224x224 crop is taken and mirrored at random. Channels are blue-green-red minus
(104, 117, 123). Caffe's authors report 68.7 % top-1 and 88.9 % top-5 for one central crop
(BVLC/caffe, models/bvlc_googlenet/readme.md). This recipe has not been run here.

According to `gnet plan imagenet_caffe --topology v5e:2x4`, a step on eight TPU v5e chips takes at
least 0.71 ms, and 60 epochs take at least 28 min. On 2 CPU cores, at 12 images/s, 60 epochs take
ten weeks.
"""

from gnet_jax.config import AugmentConfig, Config, DataConfig, OptimConfig


def get_config() -> Config:
    """Returns the config of this recipe."""
    return Config(
        workdir="runs/imagenet_caffe",
        epochs=60,
        batch_size=32,
        eval_batch_size=128,
        save_every_steps=5000,
        log_every_steps=200,
        data=DataConfig(
            source="tfds:imagenet2012",
            threads=16,
            resize="warp",
            resize_to=256,
            channels="BGR",
            mean=(104.0, 117.0, 123.0),
        ),
        augment=AugmentConfig(crop="fixed_scale"),
        optim=OptimConfig(learning_rate=0.01, schedule="poly", power=0.5),
    )
