import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from gnet_jax.cli.main import main
from gnet_jax.config import Preprocessing, UserError
from gnet_jax.inference.demo import build, serve
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_photo_is_classified_by_the_head_that_is_chosen(trained, tmp_path):
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
        page.wait_for_selector("text=Error")
        chromium.close()
    page_of_model.close()
    assert {host for host in hosts if host} == {address.split("/")[2]}
    assert not errors
