"""JSON to dataclasses: everything comes back, and everything odd is named."""

import dataclasses
import json

import pytest

from gnet_jax.config import Config, Preprocessing, UserError
from gnet_jax.model.architecture import VARIANTS, Architecture
from gnet_jax.model_folder.folder import from_json, to_json


@pytest.mark.parametrize(
    "value", [*VARIANTS.values(), Preprocessing(), Config()], ids=lambda v: type(v).__name__
)
def test_a_value_comes_back_through_json(value):
    assert from_json(type(value), json.loads(json.dumps(to_json(value)))) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": "group"}, "head is 'group'"),
        ({"dropout": "0.4"}, "dropout is '0.4'.*float"),
        ({"naive": 1}, "naive is 1.*bool"),
        ({"num_classes": True}, "num_classes is True.*int"),
        ({"stem_widths": {"a": 64}}, "stem_widths is"),
        ({"stem_widths": [64, 64]}, r"stem_widths is \[64, 64\]"),
        ({"stem_widths": [64, 64, None]}, r"stem_widths\[2\] is None"),
        ({"widths": {"3a": {"b1": 1}}}, "widths.3a: .*missing"),
        ({"widths": 3}, "widths is 3"),
        ({"aux_after": "4a"}, "aux_after is '4a'"),
        ({"aux_after": 4}, "aux_after is 4"),
        ({"aux_after": ["4a", 4]}, r"aux_after\[1\] is 4"),
        ({"num_classes": []}, r"num_classes is \[\].*int"),
        ({"head": ["avg"]}, r"head is \['avg'\]"),
        ({"depth": 22}, "depth"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(UserError, match=message):
        from_json(Architecture, to_json(Architecture()) | change)


def test_an_unknown_field_is_named_with_the_object_around_it():
    with pytest.raises(UserError, match=r"^optim\.rate is not a field of OptimConfig"):
        from_json(Config, {"optim": {"rate": 1}})
    with pytest.raises(UserError, match=r"^rate is not a field of Config"):
        from_json(Config, {"rate": 1})


def test_an_optional_field_has_a_value_of_its_type_or_none():
    for block in ("mine.py:Block", None):
        assert from_json(Architecture, {"block": block}).block == block
    with pytest.raises(UserError, match=r"block is 3; it must be str"):
        from_json(Architecture, {"block": 3})


def test_an_absent_field_keeps_its_default_and_an_integer_becomes_a_float():
    arch = from_json(Architecture, {"dropout": 0})
    assert (arch.dropout, type(arch.dropout), arch.block) == (0.0, float, None)
    assert from_json(Preprocessing, {"image_size": 96}) == dataclasses.replace(
        Preprocessing(), image_size=96
    )
