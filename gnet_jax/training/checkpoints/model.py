"""A training run's workdir as a model: the averaged parameters of its best checkpoint."""

from pathlib import Path

from gnet_jax.model_folder.folder import CONFIG_FILE, ModelFolder, folder_of
from gnet_jax.model_folder.variables import WeightsError
from gnet_jax.training.checkpoints.restore import SavedSteps
from gnet_jax.training.checkpoints.save import digest

CHECKPOINTS = "checkpoints"


def is_workdir(path: Path) -> bool:
    """Whether `path` is the workdir of a run that has saved something."""
    return (path / CONFIG_FILE).is_file() and (path / CHECKPOINTS).is_dir()


def read_workdir(workdir: Path) -> ModelFolder:
    """Returns the network of the run in `workdir`, as its best evaluation saw it, with its heads.

    Averaged parameters are taken if the run kept them, and the newest checkpoint if none was
    evaluated. Everything comes from the checkpoint: the run's data and `--init` may be gone.

    Raises:
        WeightsError: if there is no checkpoint, an older version saved it, it does not fit its own
            description, or one checkpoint is so damaged that nothing tells whether it is the best.
        ConfigError: if the checkpoint is damaged.
    """
    saved = SavedSteps(workdir / CHECKPOINTS)
    for step, reason in saved.damaged.items():  # it may be the best one
        raise WeightsError(
            f"checkpoint {step} in {saved.folder} is damaged: {reason}; move "
            f"{saved.folder / str(step)} away to take the best of the others"
        )
    step = saved.latest if saved.best is None else saved.best
    if step is None:
        raise WeightsError(f"{workdir} holds no finished checkpoint; train until one is saved")
    description = saved.model(step)
    if description is None:
        raise WeightsError(
            f"checkpoint {step} in {saved.folder} contains no model because an older version saved "
            "it; run its training command again, which adds the model, or convert it with that "
            "version"
        )
    tensors = saved.read(step, lambda name: name.startswith("average/"))
    averaged = bool(tensors)
    if not averaged:
        tensors = saved.read(step, lambda name: name.startswith(("params/", "batch_stats/")))
    where = f"checkpoint {step} in {saved.folder}"
    folder = folder_of(
        description, {name.removeprefix("average/"): each for name, each in tensors.items()}, where
    )
    folder.source.update(
        file=workdir.absolute().name,
        sha256=digest(folder.variables),
        step=str(step),
        parameters="averaged" if averaged else "as trained",
    )
    if step in saved.top1():
        folder.source["validation_top1"] = f"{saved.top1()[step]:.4f}"
    return folder
