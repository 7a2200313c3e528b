"""A training run's workdir as a model: the averaged parameters of its best checkpoint."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnet_jax.config import Config
from gnet_jax.data import open_source
from gnet_jax.training.checkpoint import digest
from gnet_jax.training.run import make_program
from gnet_jax.training.saved_steps import SavedSteps
from gnet_jax.training.sharding import data_mesh
from gnet_jax.weights.folder import CONFIG_FILE, ModelFolder
from gnet_jax.weights.schema import SchemaError, from_json
from gnet_jax.weights.start import with_start
from gnet_jax.weights.variables import WeightsError

CHECKPOINTS = "checkpoints"


def is_workdir(path: Path) -> bool:
    """Whether `path` is the workdir of a run that has saved something."""
    return (path / CONFIG_FILE).is_file() and (path / CHECKPOINTS).is_dir()


def read_config(workdir: Path) -> Config:
    """The config that the run in `workdir` was started with.

    Raises:
        WeightsError: if the file is damaged, or was written by an incompatible version.
    """
    file = workdir / CONFIG_FILE
    try:
        flat: dict[str, Any] = json.loads(file.read_text("utf-8"))
        nested: dict[str, Any] = {}
        for name, value in flat.items():
            if name.startswith("data.fingerprint."):
                continue
            *parents, last = name.split(".")
            inner = nested
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        return from_json(Config, nested)
    except (OSError, SchemaError) as error:
        raise WeightsError(f"the config {file} cannot be used: {error}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise WeightsError(f"{file} is damaged: {error}") from error


def read_workdir(workdir: Path) -> ModelFolder:
    """The network of the run in `workdir`, as its best evaluation saw it, auxiliary heads included.

    Averaged parameters are taken where the run kept them, and the newest checkpoint where none
    was evaluated. The run's training data must be in place, for their class names become the
    model's, and so must the model that it began from.

    Raises:
        WeightsError: if there is no checkpoint, the config cannot be read, or one checkpoint is so
            damaged that it cannot be told whether it is the best.
        ConfigError, DataError: as `make_program`; or if the checkpoint is damaged.
    """
    config = read_config(workdir)
    try:
        config, pretrained = with_start(config)
    except WeightsError as error:
        raise WeightsError(
            f"the run in {workdir} began from {config.init}, whose network is needed: {error}"
        ) from error
    train = open_source(config.data.source, "train")
    # One device, whatever the run was trained on: its batches need not divide over those here.
    mesh = data_mesh(jax.local_devices()[:1])
    run = make_program(config, train.class_names, len(train), mesh, pretrained)
    saved = SavedSteps(workdir / CHECKPOINTS)
    for step, reason in saved.damaged.items():  # it may be the best one
        raise WeightsError(
            f"checkpoint {step} in {saved.folder} is damaged: {reason}; move "
            f"{saved.folder / str(step)} away to take the best of the others"
        )
    step = saved.latest if saved.best is None else saved.best
    if step is None:
        raise WeightsError(f"{workdir} holds no finished checkpoint; train until one is saved")
    top1 = saved.top1().get(step)
    state = saved.restore(step, run.abstract_state())
    own = {"params": state.params, "batch_stats": state.batch_stats}
    variables = jax.tree.map(np.asarray, state.average or own)
    names = list(train.class_names)
    outputs = run.model.arch.num_classes
    names += [f"class {i}" for i in range(len(names), outputs)]  # model.num_classes may be larger
    source = {
        "file": workdir.absolute().name,
        "format": "training workdir",
        "sha256": digest(variables),
        "data": config.data.source,
        "step": str(step),
        "parameters": "averaged" if state.average else "as trained",
    }
    if top1 is not None:
        source["validation_top1"] = f"{top1:.4f}"
    return ModelFolder(run.model, variables, run.config.data.preprocessing, tuple(names), source)
