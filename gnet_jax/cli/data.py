"""Commands about data: check-data, show-data, prepare."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gnet_jax.config import Config, UserError, check
from gnet_jax.config.command import parse_config


@dataclasses.dataclass(frozen=True)
class ShowData(Config):
    """What `gnet show-data` is given: a run's config, and what to draw of it."""

    out: Path = Path("sheet.png")
    """The picture to write."""
    split: Literal["train", "val"] = "train"
    """train: what a training step sees, above it the untouched images; val: an evaluation."""
    step: int = 0
    """Finished steps before the one that is drawn."""
    rows: int = 3
    columns: int = 8


def show_data(arguments: Sequence[str]) -> None:
    """Draw what the network sees of its data at a step: the images of a batch as they enter it.

    Takes a recipe and its fields as train.py does: `gnet show-data CONFIG --out SHEET.png`.
    """
    given = parse_config(arguments, "gnet show-data", ShowData, about=inspect.getdoc(show_data))
    for name, least in (("rows", 1), ("columns", 1), ("step", 0)):
        if getattr(given, name) < least:
            raise UserError(f"--{name} is {getattr(given, name)}; it must be at least {least}")
    check(given)
    # Imported here, so that --help and a typo answer at once.
    from gnet_jax.data import open_source
    from gnet_jax.lab.contact_sheet import check_picture, draw_sheet

    check_picture(given.out)
    config = _prepared_as_loaded(given)
    source = open_source(config.data.source, given.split)
    images = draw_sheet(
        config,
        source,
        given.out,
        name=arguments[0] if arguments and arguments[0][0] != "-" else "digits",
        split=given.split,
        step=given.step,
        rows=given.rows,
        columns=given.columns,
    )
    print(f"drew {images} images into {given.out}")


def _prepared_as_loaded(config: Config) -> Config:
    """`config` with the preprocessing of the model that it starts from, where that is at hand."""
    from gnet_jax.weights.folder import read_folder
    from gnet_jax.weights.start import with_preprocessing

    if config.init is None:
        return config
    if not Path(config.init).is_dir():
        print(f"there is no {config.init}: drawn with the preprocessing of the config")
        return config
    return with_preprocessing(config, read_folder(config.init).preprocessing)
