"""A local web page to try a model: it shows the classes and activation map of one head."""

from importlib import import_module
from pathlib import Path
from typing import Any

from gnet_jax.config import UserError
from gnet_jax.config.recipes import needs
from gnet_jax.data.decode import decode
from gnet_jax.inference.cam import MAIN, ActivationMapper, draw
from gnet_jax.inference.images import MAX_DOWNLOAD
from gnet_jax.inference.predict import top_classes
from gnet_jax.model_folder import TrainedModel

HOST = "127.0.0.1"  # reachable only from this machine


def build(trained: TrainedModel, title: str) -> Any:
    """Returns the page as a `gradio.Blocks`. Raises UserError if gradio is not installed."""
    try:
        gr: Any = import_module("gradio")
    except ImportError as error:
        raise UserError(needs("the demo", error, "demo")) from error

    mapper = ActivationMapper(trained)

    def look(path: str | None, head: str) -> tuple[dict[str, float] | None, Any]:
        if path is None:
            return None, None
        try:
            probabilities, found = mapper.own(decode(Path(path).read_bytes()), head)
        except UserError as error:
            raise gr.Error(str(error)) from error
        guesses = top_classes(probabilities, trained.class_names)
        # Add the index, because two classes of the same name would share a bar of the chart.
        shown = {f"{g['label']} ({g['index']})": g["probability"] for g in guesses}
        return shown, draw(found)

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\nDrop a photo. Nothing leaves this machine.")
        with gr.Row():
            with gr.Column():
                # With image_mode None, the file is passed unchanged to `decode`.
                ways = ["upload", "clipboard"]
                photo = gr.Image(type="filepath", image_mode=None, sources=ways, label="Photo")
                info = None if len(mapper.heads) > 1 else "This model has no auxiliary heads."
                head = gr.Radio(list(mapper.heads), value=MAIN, label="Head", info=info)
            with gr.Column():
                classes = gr.Label(num_top_classes=5, label="Most probable classes")
                # Show no label, which would cover the map's title, and no button for sharing.
                buttons = ["download", "fullscreen"]
                seen = gr.Image(type="pil", show_label=False, interactive=False, buttons=buttons)
        for changed in (photo, head):
            changed.change(look, [photo, head], [classes, seen], api_name=False)
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
