"""A local web page to try a model: it shows the classes and activation map of one head."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from gnet_jax.config import UserError, choose
from gnet_jax.config.recipes import needs
from gnet_jax.data.decode import decode
from gnet_jax.inference.cam import MAIN, ActivationMapper, draw
from gnet_jax.inference.images import MAX_DOWNLOAD
from gnet_jax.inference.predict import top_classes
from gnet_jax.model_folder import TrainedModel

HOST = "127.0.0.1"  # reachable only from this machine
# Every ten minutes, delete photos and maps older than an hour; delete all when the server stops.
DELETE_CACHE = (600, 3600)


def build(
    trained: TrainedModel, title: str, add_tab: Callable[[Any, TrainedModel], None] | None = None
) -> Any:
    """Returns the page as a `gradio.Blocks`. Raises UserError if gradio is not installed.

    `add_tab` is called with gradio and the model to add another tab.
    """
    try:
        gr: Any = import_module("gradio")
    except ImportError as error:
        raise UserError(needs("the demo", error, "demo")) from error

    mapper = ActivationMapper(trained)

    def classify(photo: dict[str, Any] | None, head: str) -> tuple[dict[str, float] | None, Any]:
        if photo is None:
            return None, None
        try:
            choose("head", head, mapper.heads)
            picture = decode(Path(photo["path"]).read_bytes())
            probabilities, found = mapper.own(picture, head)
        except FileNotFoundError:
            problem = "the photo was deleted; upload it again"
        except UserError as error:
            problem = str(error)
        else:
            guesses = top_classes(probabilities, trained.class_names)
            # Add the index, because two classes of the same name would share a bar of the chart.
            shown = {f"{g['label']} ({g['index']})": g["probability"] for g in guesses}
            return shown, draw(found)
        raise gr.Error(problem, print_exception=False)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=DELETE_CACHE) as page:
        gr.Markdown(f"# {title}\nNothing leaves this machine.")
        with gr.Tab("Classify"):
            gr.Markdown("Drop a photo.")
            with gr.Row():
                with gr.Column():
                    photo = gr.Image(sources=["upload", "clipboard"], label="Photo")
                    info = None if len(mapper.heads) > 1 else "This model has no auxiliary heads."
                    head = gr.Radio(list(mapper.heads), value=MAIN, label="Head", info=info)
                with gr.Column():
                    classes = gr.Label(num_top_classes=5, label="Most probable classes")
                    # Show no label, which would cover the map's title, and no button for sharing.
                    buttons = ["download", "fullscreen"]
                    hidden = {"label": "Map", "show_label": False}
                    seen = gr.Image(type="pil", interactive=False, buttons=buttons, **hidden)
            changes = [photo.change, head.change]
            # Gradio would open the file itself, and print a traceback for one that is not an image.
            options = {"api_name": "classify", "preprocess": False}
            gr.on(changes, classify, [photo, head], [classes, seen], **options)
        if add_tab is not None:
            add_tab(gr, trained)
    return page


def serve(page: Any, port: int | None) -> str:
    """Serve the page on this machine, in other threads, and return its address.

    If `port` is None, gradio chooses one. Raises UserError if the port is in use.
    """
    where = {"server_name": HOST, "server_port": port, "share": False}
    options = {"max_file_size": MAX_DOWNLOAD, "quiet": True, "prevent_thread_lock": True}
    try:
        return page.launch(**where, **options)[1]
    except OSError as error:
        raise UserError(f"cannot serve on port {port}: {error}; try another --port") from error
