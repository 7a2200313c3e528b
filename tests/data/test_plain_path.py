"""Libraries see no character of a path that they could misread."""

import functools
import os
import tempfile

import pytest

from gnet_jax.config import paths as module
from gnet_jax.config.paths import as_text, did_you_mean, plain_path, temporary_home


def test_a_plain_path_is_left_as_it_is(tmp_path):
    assert plain_path(tmp_path / "not" / "there-1.0_a,b=c+d") == tmp_path / "not/there-1.0_a,b=c+d"


@pytest.mark.parametrize("name", ["[1]", "a*?", "b\\c", "d e", "f\n", "#%'\"", "gs:", "\udcff"])
def test_an_odd_path_leads_to_the_same_place(tmp_path, name):
    odd = tmp_path / name / "x" / name / "run"
    odd.parent.mkdir(parents=True)
    folder = tmp_path / name
    assert plain_path(folder).samefile(folder)
    assert plain_path(folder) != folder
    plain = plain_path(odd)
    assert set(str(plain)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./+=,-"
    )
    plain.mkdir()
    assert odd.is_dir()
    assert plain_path(odd) == plain


def test_a_temporary_folder_with_an_odd_name_is_not_used(tmp_path, monkeypatch):
    odd = tmp_path / "tmp[1]"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    monkeypatch.setattr(module, "_links_folder", functools.cache(module._links_folder.__wrapped__))
    monkeypatch.setattr(module, "_links", {})
    assert plain_path(odd).samefile(odd)
    assert not any(odd.iterdir())
    module._links_folder().cleanup()


@pytest.mark.parametrize("taken", ["file", "link", "folder of another user"])
def test_a_temporary_home_is_never_of_another_kind_or_user(taken, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if taken == "folder of another user":
        other = os.getuid() + 1
        monkeypatch.setattr("os.getuid", lambda: other)
    own = tmp_path / f"gnet_jax-{os.getuid()}"
    if taken == "file":
        own.touch()
    elif taken == "link":
        (tmp_path / "elsewhere").mkdir()
        own.symlink_to(tmp_path / "elsewhere")
    else:
        own.mkdir()
    home = temporary_home()
    assert home.is_dir()
    assert home.parent == tmp_path
    assert home not in (own, tmp_path / "elsewhere")


def test_only_what_a_terminal_or_json_cannot_show_is_escaped():
    for name in (" ", "~", "\xa0", "é", "\u2027", "\u202a", "\u3000", "\ud7ff", "\ue000", "👩‍🔬"):
        assert as_text(f"a{name}b") == f"a{name}b"
    for name, escaped in (
        ("\0", r"\x00"),
        ("\n", r"\n"),
        ("\x1f", r"\x1f"),
        ("\x7f", r"\x7f"),
        ("\x9f", r"\x9f"),
        ("\u2028", r"\u2028"),
        ("\u2029", r"\u2029"),
        ("\ud800", r"\ud800"),
        ("\udc7f", r"\udc7f"),
        ("\udc80", r"\x80"),  # the byte 0x80
        ("\udcff", r"\xff"),
        ("\udd00", r"\udd00"),
    ):
        assert as_text(f"a{name}b") == f"a{escaped}b"


def test_a_similar_path_is_suggested_even_if_a_folder_is_misspelt(tmp_path, monkeypatch):
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert did_you_mean("runs/digist") == " (did you mean runs/digits?)"
    assert did_you_mean("run/digist") == " (did you mean runs/digits?)"
    (tmp_path / "PHOTOS").mkdir()
    assert did_you_mean("PHOTO.jpg") == " (did you mean photo.jpg?)"
    assert did_you_mean(tmp_path / "phot.jpg") == f" (did you mean {tmp_path / 'photo.jpg'}?)"
    for missing in ("runs/digits", "elsewhere", "photo.jpg/a", "run/digits/b", "", "\0"):
        assert did_you_mean(missing) == ""
