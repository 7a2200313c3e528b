"""A local page to try a network: drop a photo, see what each head makes of it, and where."""

from importlib import import_module
from pathlib import Path
from typing import Any

from gnet_jax.config import UserError
from gnet_jax.config.recipes import needs
from gnet_jax.data.decode import decode
from gnet_jax.inference.cam import MAIN, HeadMapper, draw
from gnet_jax.inference.images import MAX_DOWNLOAD
from gnet_jax.inference.predict import TrainedModel, top

HOST = "127.0.0.1"  # this machine alone


def build(trained: TrainedModel, title: str) -> Any:
    """The page, a `gradio.Blocks` that is not yet served.

    Raises:
        UserError: if gradio is not installed.
    """
    try:
        gr: Any = import_module("gradio")
    except ImportError as error:
        raise UserError(needs("the demo", error, "demo")) from error

    mapper = HeadMapper(trained)

    def look(path: str | None, head: str) -> tuple[dict[str, float] | None, Any]:
        if path is None:
            return None, None
        try:
            probabilities, found = mapper.own(decode(Path(path).read_bytes()), head)
        except UserError as error:
            raise gr.Error(str(error)) from error
        guesses = top(probabilities, trained.class_names)
        # Two classes of one name would be one bar of the chart.
        shown = {f"{g['label']} ({g['index']})": g["probability"] for g in guesses}
        return shown, draw(found)

    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {title}\nDrop a photo. Nothing leaves this machine.")
        with gr.Row():
            with gr.Column():
                photo = gr.Image(
                    type="filepath",
                    image_mode=None,  # the file as it is: its kinds are decode's business
                    sources=["upload", "clipboard"],
                    label="Photo",
                )
                head = gr.Radio(
                    list(mapper.heads),
                    value=MAIN,
                    label="Head",
                    info=None if len(mapper.heads) > 1 else "This model has no auxiliary heads.",
                )
            with gr.Column():
                classes = gr.Label(num_top_classes=5, label="Likeliest classes")
                # Without a label, which would lie on the map's own title, and without sharing.
                seen = gr.Image(
                    type="pil",
                    show_label=False,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
        for changed in (photo, head):
            changed.change(look, [photo, head], [classes, seen], api_name=False)
    return page


def serve(page: Any, port: int | None, *, block: bool = True) -> str:
    """Serve the page on this machine alone, and return its address once it is up.

    Args:
        page: of `build`.
        port: None takes the first free one from 7860 on.
        block: return only when the server ends, as on Ctrl-C.

    Raises:
        UserError: if the port is taken.
    """
    try:
        _, address, _ = page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            max_file_size=MAX_DOWNLOAD,
            prevent_thread_lock=True,
            quiet=True,
        )
    except OSError as error:
        raise UserError(
            f"cannot serve on {HOST}, port {port}: {error}; try another --port"
        ) from error
    if block:
        print(f"open {address} in a browser; Ctrl-C ends it", flush=True)
        page.block_thread()
    return address
