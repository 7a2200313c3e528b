"""A local web page to try a model: drop a photo, see each head's classes and activation map."""

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

HOST = "127.0.0.1"  # this machine only


def build(trained: TrainedModel, title: str) -> Any:
    """Returns the page, a `gradio.Blocks`, for `serve`. Raises UserError if gradio is missing."""
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
        # The index, because two classes of one name would share a bar of the chart.
        shown = {f"{g['label']} ({g['index']})": g["probability"] for g in guesses}
        return shown, draw(found)

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\nDrop a photo. Nothing leaves this machine.")
        with gr.Row():
            with gr.Column():
                # image_mode None keeps the file as it is, for `decode`.
                ways = ["upload", "clipboard"]
                photo = gr.Image(type="filepath", image_mode=None, sources=ways, label="Photo")
                info = None if len(mapper.heads) > 1 else "This model has no auxiliary heads."
                head = gr.Radio(list(mapper.heads), value=MAIN, label="Head", info=info)
            with gr.Column():
                classes = gr.Label(num_top_classes=5, label="Most probable classes")
                # No label, which would cover the map's own title, and no sharing.
                buttons = ["download", "fullscreen"]
                seen = gr.Image(type="pil", show_label=False, interactive=False, buttons=buttons)
        for changed in (photo, head):
            changed.change(look, [photo, head], [classes, seen], api_name=False)
    return page


def serve(page: Any, port: int | None, *, block: bool = True) -> str:
    """Serve the page on this machine only; return its address once it is up, or with `block` when
    the server ends. Port None takes the first free one from 7860 on. Raises UserError if it is
    taken.
    """
    try:
        options = {"share": False, "max_file_size": MAX_DOWNLOAD, "quiet": True}
        where = {"server_name": HOST, "server_port": port}
        _, address, _ = page.launch(**where, **options, prevent_thread_lock=True)
    except OSError as error:
        raise UserError(f"cannot serve on port {port}: {error}; try another --port") from error
    if block:
        print(f"open {address} in a browser; Ctrl-C stops the server", flush=True)
        page.block_thread()
    return address
