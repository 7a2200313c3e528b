"""Class names out of files of every origin: read right, or refused by name."""

import json

import pytest

from gnet_jax.cli.main import main
from gnet_jax.data.class_names import read_class_names
from gnet_jax.data.sources import DataError
from gnet_jax.data.sources.classes import imagenet_classes
from gnet_jax.model_folder import read_folder, write_folder
from tests.convert.conftest import shared

NAMES = ("ant", "Käfer", "crane, größer")


@pytest.mark.parametrize(
    "data",
    [
        "\n".join(NAMES).encode(),
        ("\r\n".join(NAMES) + "\r\n").encode(),
        ("\r".join(NAMES)).encode(),
        ("\n".join(NAMES) + "\n\n \n").encode("utf-8-sig"),
        "\n".join(f"  {name}\t" for name in NAMES).encode(),
        json.dumps(NAMES).encode(),
        json.dumps(NAMES, ensure_ascii=False).encode("utf-8-sig"),
        repr(list(NAMES)).encode(),
        json.dumps({"2": NAMES[2], "0": NAMES[0], "1": NAMES[1]}).encode(),
        repr({0: NAMES[0], 1: NAMES[1], 2: NAMES[2]}).encode(),
        json.dumps({name: index for index, name in enumerate(NAMES)}).encode(),
        json.dumps({str(i): [f"n0000000{i}", name] for i, name in enumerate(NAMES)}).encode(),
        "\n".join(f"n0000000{i} {name}" for i, name in enumerate(NAMES)).encode(),
        "\n".join(f"{i}: {name}" for i, name in enumerate(NAMES)).encode(),
        "\n".join(f"{i} {NAMES[i]}" for i in (2, 0, 1)).encode(),
        "\n".join(f"{name} {i}" for i, name in enumerate(NAMES)).encode(),
    ],
)
def test_names_are_read_from_any_common_form(tmp_path, data):
    (tmp_path / "names").write_bytes(data)
    assert read_class_names(tmp_path / "names") == NAMES


@pytest.mark.parametrize(
    "names",
    [
        ("class 0", "class 1", "class 2"),
        ("n01440764", "n01443537"),
        ("0", "1", "2"),
        ("boeing 747", "airbus 320"),
        ("form\x0bfeed", "next\u2028line"),
    ],
)
def test_names_that_only_look_like_another_form_are_kept(tmp_path, names):
    (tmp_path / "names").write_text("\n".join(names), "utf-8")
    assert read_class_names(tmp_path / "names") == names


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ("ant\nKäfer\n".encode("latin-1"), r"line 2 of .*names.* UTF-8.*K.xe4fer"),
        (b"a\xff" + b"b" * 99 + b"\nant\n", r"line 1 of .*names is not.* UTF-8.*'a.xffb{78}'"),
        (b"ant\n\nbee\n", r"line 2 of .*names is blank"),
        (b"n00000001 ant\nbee\n", r"line 2 of .*names has no WordNet id: 'bee'"),
        (b'["ant", "bee"', "names .*JSON"),
        (b'["ant", 3]', "entry 1 of .*names is '3'"),
        (b'{"0": "ant", "2": "bee"}', "names in .*names are not numbered"),
        (b'["ant", ""]', "entry 1"),
        (b'{"ant", "bee"}', "names contains a set"),
    ],
)
def test_what_cannot_be_read_right_is_refused_by_name(tmp_path, data, named):
    (tmp_path / "names").write_bytes(data)
    with pytest.raises(DataError, match=named):
        read_class_names(tmp_path / "names")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*none"):
        read_class_names(tmp_path / "none")
    with pytest.raises(DataError, match="cannot read"):
        read_class_names(tmp_path)


def test_caffes_own_list_is_imagenets():
    assert read_class_names(shared("synset_words.txt")) == tuple(imagenet_classes().values())


@pytest.mark.parametrize(("lines", "code"), [(3, 0), (2, 2), (4, 2)])
def test_convert_takes_one_name_for_each_output(tmp_path, small, lines, code, capsys):
    write_folder(tmp_path / "src", small)
    names = tmp_path / "names.txt"
    names.write_text("\n".join("äbcd"[:lines]), "utf-8-sig")
    command = ["convert", str(tmp_path / "src"), str(tmp_path / "out")]
    assert main([*command, "--class-names", str(names)]) == code
    if code:
        assert f"has {lines} names" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    else:
        assert read_folder(tmp_path / "out").class_names == ("ä", "b", "c")
