"""Files, folders, URLs and standard input, and every way in which they fail."""

import http.server
import io
import os
import sys
import threading
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnet_jax.config import UserError
from gnet_jax.inference import images
from gnet_jax.inference.images import Pictures, open_picture

BESIDE = Path(__file__).parents[2] / "../shared/data"
ODD = Path(os.environ.get("GNET_SHARED_DATA", BESIDE)) / "odd"


def jpeg(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "JPEG")
    return buffer.getvalue()


RED, BLUE = jpeg("red"), jpeg("blue")


class Server(http.server.BaseHTTPRequestHandler):
    """Lies about types and lengths as real servers do."""

    def do_GET(self) -> None:
        match self.path:
            case "/photo":
                self.answer(RED, "text/html")
            case "/page.jpg":
                self.answer(b"<html>not found</html>", "image/jpeg")
            case "/cut":
                self.answer(RED[:-50], "image/jpeg", length=len(RED))
            case "/moved":
                self.send_response(302)
                self.send_header("Location", "/photo")
                self.end_headers()
            case "/a%20caf%C3%A9/%E7%8C%AB%25.jpg?q=%C3%A9%20x&r=1" | "/100%":
                self.answer(BLUE, "image/jpeg")
            case "/moved%20far":
                self.send_response(302)
                self.send_header(
                    "Location", "/a caf\u00c3\u00a9/\u00e7\u008c\u00ab%25.jpg?q=%C3%A9 x&r=1"
                )
                self.end_headers()
            case "/large":
                self.answer(bytes(range(250)) * 20, "image/jpeg")
            case "/robots":
                known = "python-urllib/" in self.headers["User-Agent"].lower()
                self.send_error(403) if known else self.answer(BLUE, "image/jpeg")
            case _:
                self.send_error(404)

    def answer(self, body: bytes, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def reason(argument) -> str:
    (found,) = Pictures([str(argument)])
    assert found.name == str(argument)
    assert isinstance(found.picture, UserError)
    return str(found.picture)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "index").write_bytes(b"x")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "b" / "2.jpg").write_bytes(RED)
    (tmp_path / "b" / "1.png").write_bytes(BLUE)  # a JPEG of another name
    (tmp_path / "c.txt").write_text("no image")
    (tmp_path / "a.jpg").write_bytes(RED)
    return tmp_path


def test_a_folder_gives_its_images_and_those_below_in_order(folder):
    names = ["a.jpg", "b/1.png", "b/2.jpg"]
    assert [found.name for found in Pictures([str(folder)])] == [str(folder / n) for n in names]
    once = Pictures([str(folder)]).left_out
    twice = Pictures([str(folder), str(folder)]).left_out
    assert once
    assert twice == {reason: 2 * paths for reason, paths in once.items()}


def test_damaged_and_missing_ones_are_reported_by_name_and_the_rest_goes_on(folder):
    (folder / "b" / "0.jpg").write_bytes(RED[:-50])
    (folder / "b" / "3.jpg").write_bytes(b"")
    results = list(Pictures([str(folder), "absent.jpg", str(folder / "a.jpg")]))
    read = {
        r.name.removeprefix(f"{folder}/"): not isinstance(r.picture, UserError) for r in results
    }
    assert read == {
        "a.jpg": True,
        "b/0.jpg": False,
        "b/1.png": True,
        "b/2.jpg": True,
        "b/3.jpg": False,
        "absent.jpg": False,
    }
    assert len(results) == 7


def test_arguments_are_read_only_when_they_are_asked_for(tmp_path):
    later = tmp_path / "later.jpg"
    found = iter(Pictures([str(tmp_path / "absent"), str(later)]))
    assert isinstance(next(found).picture, UserError)
    later.write_bytes(RED)
    assert isinstance(next(found).picture, Image.Image)


def test_what_is_wrong_with_a_path_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for missing in (tmp_path / "absent", tmp_path / "dangling", "ftp://example.org/a.jpg"):
        assert "No such file" in reason(missing)
    assert "no images" in reason(tmp_path / "empty")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").symlink_to(tmp_path / "nowhere")
    (found,) = Pictures([str(tmp_path / "broken")])  # which tells enough
    assert found.name.endswith("a.jpg")
    monkeypatch.setattr(images, "MAX_FILE", 2**20)
    for size, refused in ((2**20, False), (2**20 + 1, True)):
        (tmp_path / "large").write_bytes(bytes(size))
        assert ("1 MB" in reason(tmp_path / "large")) == refused


def test_one_byte_over_the_limit_is_read_and_a_server_may_be_silent_for_20_seconds(monkeypatch):
    asked = []

    class File(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return b""

    def urlopen(request, timeout):
        asked.append((request.full_url, timeout))
        raise OSError("silent")

    monkeypatch.setattr(images, "open", lambda name, mode: File(), raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    assert "empty" in reason("a.jpg")
    assert "silent" in reason("http://a/b")
    assert asked == [200_000_001, ("http://a/b", 20.0)]  # 50 million pixels of 4 bytes


def test_standard_input_is_read(monkeypatch):
    class Stdin:
        buffer = io.BytesIO(BLUE)

    monkeypatch.setattr(sys, "stdin", Stdin)
    (found,) = Pictures(["-"])
    assert isinstance(found.picture, Image.Image)
    assert found.picture.size == (40, 30)
    assert "empty" in reason("-")  # it is at its end now
    for limit, refused in ((len(BLUE), False), (len(BLUE) - 1, True)):
        Stdin.buffer = io.BytesIO(BLUE)
        monkeypatch.setattr(images, "MAX_DOWNLOAD", limit)
        (found,) = Pictures(["-"])
        assert ("larger" in str(found.picture)) == refused


def test_a_download_may_have_32_mib():
    assert images.MAX_DOWNLOAD == 33_554_432


def test_urls_are_judged_by_content_and_redirects_are_followed(url):
    for address in (f"{url}/photo", f"{url}/moved", f"{url}/robots", f"HTTP{url[4:]}/photo"):
        (found,) = Pictures([address])
        assert isinstance(found.picture, Image.Image)
        assert found.name == address


def test_what_is_wrong_with_a_url_is_named(url, monkeypatch):
    assert "404" in reason(f"{url}/absent")
    assert "not an image" in reason(f"{url}/page.jpg")
    assert "corrupt" in reason(f"{url}/cut") or "cannot be downloaded" in reason(f"{url}/cut")
    assert "cannot be downloaded" in reason("http://127.0.0.1:1/closed.jpg")
    assert "cannot be downloaded" in reason("http://[bad")
    assert "cannot be downloaded" in reason("http:///nobody")
    monkeypatch.setattr(images, "MAX_DOWNLOAD", 4999)
    assert "larger than" in reason(f"{url}/large")
    monkeypatch.setattr(images, "MAX_DOWNLOAD", 5000)
    assert "not an image" in reason(f"{url}/large")


def test_the_connection_of_a_failed_download_is_closed(monkeypatch):
    body = io.BytesIO(b"not found")
    failed = urllib.error.HTTPError("http://a/b", 404, "Not Found", Message(), body)

    def fail(*_, **__):
        raise failed

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    assert "404" in reason("http://a/b")
    assert body.closed


def test_a_server_that_never_answers_times_out(monkeypatch):
    import socket

    monkeypatch.setattr(images, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        assert "timed out" in reason(f"http://127.0.0.1:{port}/a.jpg")


@pytest.mark.parametrize("address", ["http://", "http://[::1/a", "http://a:x/", "https:///a b"])
def test_a_url_that_cannot_be_one_is_reported(address):
    assert "cannot be downloaded" in reason(address)


@pytest.mark.parametrize("host", ["ü" * 80 + ".example", "a..b\u00fc"])
def test_a_host_that_cannot_be_one_is_reported(host):
    assert "cannot be downloaded" in reason(f"http://{host}/a")


def test_one_picture_is_opened_from_a_path_a_picture_or_pixels(folder):
    expected = np.asarray(Pictures([str(folder / "a.jpg")])[0].picture)
    with Image.open(folder / "a.jpg") as opened:
        for given in (folder / "a.jpg", str(folder / "a.jpg"), opened, expected):
            np.testing.assert_array_equal(np.asarray(open_picture(given)), expected)
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.asarray(open_picture(grey))[2, 3].tolist() == [11, 11, 11]
    for given, named in ((folder, str(folder)), (folder / "absent.jpg", "absent.jpg")):
        with pytest.raises(UserError, match=named):
            open_picture(given)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_a_picture_of_any_mode_is_opened_as_its_file_is(tmp_path, mode):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8))
    photo = (
        photo.convert("L").convert("I").convert("I;16") if mode == "I;16" else photo.convert(mode)
    )
    if "A" in mode:
        photo.putalpha(Image.fromarray(np.arange(30, dtype=np.uint8).reshape(6, 5) * 8))
    photo.save(tmp_path / "a.tif")
    found, expected = open_picture(photo), open_picture(tmp_path / "a.tif")
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_picture_is_turned_upright_as_its_file_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert open_picture(opened).size == (30, 40)
    assert open_picture(tmp_path / "a.jpg").size == (30, 40)


def outcome(image):
    """The pixels, or the words of the refusal."""
    try:
        return np.asarray(open_picture(image)).tolist()
    except UserError as error:
        return str(error).rpartition("the image: ")[2].removeprefix(f"{image}: ")


def test_an_opened_picture_is_read_as_its_file_is_and_remains_usable():
    if not ODD.is_dir():
        pytest.skip("no shared/data/odd")
    for path in sorted(ODD.iterdir()):
        if path.name == "png_text_1.2MB.png":
            continue  # Image.open itself refuses it
        with Image.open(path) as opened:
            assert outcome(opened) == outcome(path), path.name
            opened.load()


def deep_tiff(values: np.ndarray) -> io.BytesIO:
    """A file of 16-bit grey in which 0 is white."""
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(file, "TIFF", tiffinfo={262: 0})
    return file


def test_an_opened_picture_is_not_inverted():
    file = deep_tiff(np.full((3, 4), 0xC000))
    before = np.asarray(open_picture(file.getvalue()))
    np.testing.assert_array_equal(np.asarray(open_picture(Image.open(file))), before)
    assert before.max() == 0x3F


def test_a_changed_picture_is_not_read_from_its_file(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.tif") as picture:
        picture.seek(1)
        assert outcome(picture)[0][0] == [0, 0, 255]
        picture.seek(0)
        picture.putpixel((0, 0), (0, 255, 0))
        assert outcome(picture)[0][0] == [0, 255, 0]
    with Image.open(io.BytesIO(RED)) as picture:
        picture.draft("L", (40, 30))
        assert len(set(outcome(picture)[15][20])) == 1
    closed = io.BytesIO(RED)
    with Image.open(closed) as picture:
        closed.close()
        with pytest.raises(UserError, match=r"cannot be read.*closed"):
            open_picture(picture)


@pytest.mark.parametrize("loaded", [False, True])
def test_a_picture_with_malformed_exif_is_turned_upright(loaded):
    # A resolution (tag 0x011A) of the type of texts, which Pillow reads but cannot write.
    entries = b"\x01\x12\0\x03\0\0\0\1\0\6\0\0" + b"\x01\x1a\0\x02\0\0\0\4abc\0"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + entries + bytes(4)
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG", exif=exif)
    with Image.open(file) as picture:
        if loaded:
            picture.load()
        assert open_picture(picture).size == (30, 40)


@pytest.mark.parametrize("path", ["a\0b.jpg", Path("a\0b.jpg"), "a\ud800.jpg"])
def test_a_path_that_no_file_can_have_is_refused(path):
    with pytest.raises(UserError, match=r"cannot be read: the path is invalid"):
        open_picture(path)


@pytest.mark.parametrize(
    "path",
    [
        "/a café/猫%25.jpg?q=é x&r=1",
        "/a%20caf%C3%A9/%E7%8C%AB%25.jpg?q=%C3%A9%20x&r=1",
        "/a café/猫%25.jpg?q=é x&r=1#a part",
        "/a café/猫%25.jpg?q=é x&r=1 ",
        "/moved far",
    ],
)
def test_urls_with_spaces_and_letters_beyond_ascii_are_fetched(path, url):
    (found,) = Pictures([url + path])
    assert isinstance(found.picture, Image.Image), found.picture
    assert found.name == url + path
