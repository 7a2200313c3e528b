import shutil
import sys
from typing import ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.config import Preprocessing, UserError
from gnet_jax.inference import demo
from gnet_jax.inference.cam import ActivationMap
from gnet_jax.inference.demo import build, serve
from gnet_jax.inference.predict import Guess
from gnet_jax.lab.look import tab
from gnet_jax.model.googlenet import GoogLeNet
from gnet_jax.model_folder import TrainedModel, write_folder
from tests.tiny import tiny_arch, tiny_variables

PIXELS = Preprocessing(image_size=16, resize_to=16, mean=(99, 99, 99), std=(50, 50, 50))


@pytest.fixture(scope="module")
def trained():
    model = GoogLeNet(tiny_arch())
    names = tuple(f"class {n}" for n in range(10))
    return TrainedModel(model, tiny_variables(model), PIXELS, names, {"format": "test"})


def test_without_gradio_one_sentence_names_the_extra(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    write_folder(tmp_path / "model", trained)
    assert main(["demo", str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert "gradio" in error
    assert "pip install -e '.[demo]'" in error


class Mapper:
    """Answers for the heads `heads`, whatever the picture."""

    heads: ClassVar = {"main": "5a", "aux 4a": "4a"}
    asked: ClassVar[list[tuple]] = []

    def __init__(self, trained):
        pass

    def own(self, picture, head):
        self.asked.append((picture.size, head))
        guess = Guess(index=7, label="class 7", probability=0.4)
        found = ActivationMap(np.eye(7, dtype=np.float32), np.zeros((16, 16, 3), np.uint8), guess)
        return np.array([0.02, 0.1, 0.02, 0.2, 0.06, 0.15, 0.01, 0.4, 0.03, 0.01]), found


class PageError(Exception):
    """Stands in for gradio.Error, which prints a traceback unless `print_exception` is False."""

    def __init__(self, message, *, print_exception):
        super().__init__(message)
        assert not print_exception


@pytest.fixture
def gradio(monkeypatch):
    """Stands in for gradio, which is an extra; `photo` and `seen` are the two images of a page."""
    gradio = MagicMock(Error=PageError, photo=MagicMock(), seen=MagicMock())
    gradio.Image.side_effect = 2 * [gradio.photo, gradio.seen]
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setattr(demo, "ActivationMapper", Mapper)
    monkeypatch.setattr(Mapper, "asked", [])
    return gradio


def test_a_change_of_photo_or_head_shows_the_five_classes_and_the_map_of_that_head(
    trained, tmp_path, gradio
):
    build(trained, "a model")
    head, bars = gradio.Radio.return_value, gradio.Label.return_value
    ((changes, classify, *wires), options) = gradio.on.call_args
    assert changes == [gradio.photo.change, head.change]
    assert wires == [[gradio.photo, head], [bars, gradio.seen]]
    assert options == {"api_name": "classify", "preprocess": False}
    assert classify(None, "main") == (None, None)
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 10)).save(photo)
    shown, drawn = classify({"path": str(photo)}, "aux 4a")
    assert Mapper.asked == [((20, 10), "aux 4a")]
    assert [*shown.items()] == [
        *(("class 7 (7)", 0.4), ("class 3 (3)", 0.2), ("class 5 (5)", 0.15)),
        *(("class 1 (1)", 0.1), ("class 4 (4)", 0.06)),
    ]
    assert drawn.size == (448, 480)
    with pytest.raises(PageError, match="choose one of main, aux 4a"):
        classify({"path": str(photo)}, "aux 9z")
    photo.write_text("...")
    with pytest.raises(PageError, match="not an image"):
        classify({"path": str(photo)}, "main")
    photo.unlink()
    with pytest.raises(PageError, match="upload it again"):
        classify({"path": str(photo)}, "main")


def test_uploads_are_deleted_after_an_hour(trained, gradio):
    build(trained, "a model")
    frequency, age = gradio.Blocks.call_args.kwargs["delete_cache"]
    assert frequency <= age == 3600


def test_the_page_says_so_if_there_is_only_one_head(trained, gradio, monkeypatch):
    build(trained, "a model")
    assert gradio.Radio.call_args.args == (["main", "aux 4a"],)
    assert gradio.Radio.call_args.kwargs["info"] is None
    monkeypatch.setattr(Mapper, "heads", {"main": "5a"})
    build(trained, "a model")
    assert "no auxiliary heads" in gradio.Radio.call_args.kwargs["info"]


def test_the_tab_optimises_an_image_for_the_channel_that_is_chosen(trained, gradio, monkeypatch):
    gradio.Image.side_effect = None
    monkeypatch.setattr(tab, "SIZE", 16)
    monkeypatch.setattr(tab, "STEPS", 2)
    build(trained, "a model", tab.add_channel_tab)
    (layers,) = gradio.Dropdown.call_args.args
    assert "inception_4a/output" in layers
    ((optimise, inputs, shown), _) = gradio.Button.return_value.click.call_args
    assert inputs == [gradio.Dropdown.return_value, gradio.Number.return_value]
    assert shown is gradio.Image.return_value
    first, other = (optimise("inception_4a/output", number) for number in (0, 1))
    assert first.shape == other.shape == (16, 16, 3)
    assert (first != other).any()
    for wrong in (10_000, None):
        with pytest.raises(PageError, match=str(wrong)):
            optimise("inception_4a/output", wrong)


def test_the_page_is_served_to_this_machine_only_and_a_port_in_use_is_named():
    page = MagicMock()
    page.launch.return_value = ("app", "http://127.0.0.1:8123/", "a public address")
    assert serve(page, 8123) == "http://127.0.0.1:8123/"
    given = page.launch.call_args.kwargs
    assert (given["server_name"], given["server_port"]) == ("127.0.0.1", 8123)
    assert (given["share"], given["quiet"], given["prevent_thread_lock"]) == (False, True, True)
    page.launch.side_effect = OSError("in use")
    with pytest.raises(UserError, match="port 8123"):
        serve(page, 8123)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_photo_is_classified_by_the_head_that_is_chosen(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    pytest.importorskip("gradio", reason="gradio, the demo's extra, is not installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    photo, text = tmp_path / "photo.png", tmp_path / "photo.txt.png"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(pixels).save(photo)
    text.write_text("not an image")
    page_of_model = build(trained, "a model")
    address = serve(page_of_model, None)
    assert address.startswith("http://127.0.0.1:")
    with pytest.raises(UserError, match="try another --port"):
        serve(build(trained, "another"), int(address.rsplit(":", 1)[1].strip("/")))
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page()
        hosts, errors = set(), []
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address, wait_until="domcontentloaded")
        page.set_input_files("input[type=file]", str(photo))
        page.wait_for_selector("text=/class \\d+ \\(\\d\\)/")
        page.get_by_label("aux 4a").check()
        page.wait_for_timeout(1000)
        assert page.locator("text=/class \\d+ \\(\\d\\)/").count() >= 5
        page.get_by_label("Remove Image").or_(page.get_by_label("Clear")).first.click()
        page.set_input_files("input[type=file]", str(text))
        page.wait_for_selector("text=not an image")
        chromium.close()
    assert any((tmp_path / "uploads").rglob("photo*.png"))
    page_of_model.close()
    assert not any((tmp_path / "uploads").rglob("*.*"))
    assert {host for host in hosts if host} == {address.split("/")[2]}
    assert not errors
