"""A tab of the page of `gnet demo`: choose a channel and see the image that excites it."""

from typing import Any

import numpy as np

from gnet_jax.config import UserError
from gnet_jax.inference.predict import layer_shapes
from gnet_jax.lab.look.objectives import parse
from gnet_jax.lab.look.visualize import visualize
from gnet_jax.model_folder import TrainedModel

SIZE, STEPS = 128, 64
FIRST = "inception_4a/output"  # the layer that is chosen at first


def add_channel_tab(gr: Any, trained: TrainedModel) -> None:
    """Add the tab to the page that is being built with gradio, the module `gr`."""

    def optimise(layer: str, channel: int | None) -> np.ndarray:
        try:
            shapes = layer_shapes(trained, SIZE)
            ((_, objective),) = parse(f"{layer}:{channel}", shapes, trained.class_names)
            options = {"preprocessing": trained.preprocessing, "size": SIZE, "steps": STEPS}
            images, _ = visualize(trained.model, trained.variables, objective, **options)
        except UserError as error:
            problem = str(error)
        else:
            return images[0]
        raise gr.Error(problem, print_exception=False)

    layers = [name for name, value in layer_shapes(trained).items() if len(value.shape) == 4]
    with gr.Tab("Look inside"):
        gr.Markdown(f"An image that excites a channel, optimised in {STEPS} steps.")
        with gr.Row():
            with gr.Column():
                start = FIRST if FIRST in layers else layers[-1]
                layer = gr.Dropdown(layers, value=start, label="Layer")
                channel = gr.Number(0, precision=0, minimum=0, label="Channel")
                button = gr.Button("Optimise")
            optimised = gr.Image(label="Image", interactive=False, format="png", height=3 * SIZE)
        button.click(optimise, [layer, channel], optimised, api_name="channel")
