"""Fine-tuning a pretrained GoogLeNet on a folder of your own photos.

    gnet convert bvlc_googlenet.caffemodel models/googlenet
    python train.py finetune_folder --data.source folder:PHOTOS --init models/googlenet

PHOTOS holds train/CLASS/*.jpg and val/CLASS/*.jpg. The classifier is new; the layers up to 4e stay
as they are, 5a and 5b learn at a tenth of the classifier's rate. `--optim.freeze` (with nothing
behind it) lets every layer learn, at four times the cost.
"""

from gnet_jax.config import Config, DataConfig, LossConfig, ModelConfig, OptimConfig


def get_config() -> Config:
    """The configuration of this recipe."""
    return Config(
        workdir="runs/finetune",
        init="models/googlenet",
        epochs=8,
        batch_size=32,
        log_every_steps=20,
        model=ModelConfig(aux_after=(), dropout=0.4),
        data=DataConfig(source="folder:photos", crop_area=(0.25, 1.0)),
        loss=LossConfig(label_smoothing=0.1),
        optim=OptimConfig(
            learning_rate=0.01,
            loaded_lr_factor=0.1,
            freeze=("conv*", "inception_[34]*"),
            schedule="cosine",
            warmup_epochs=0.5,
            averaging="ema",
            ema_decay=0.99,
        ),
    )
