"""`gnet evaluate` over two real processes."""

import json
import sys

import pytest

from gnet_jax.data.sources import open_source
from gnet_jax.inference.evaluate import evaluate
from gnet_jax.model_folder import write_folder
from tests.training.processes import joined, launch

GNET = (sys.executable, "-m", "gnet_jax")

pytestmark = pytest.mark.slow


@pytest.fixture
def files(tmp_path, model_a, make_photo):
    """A model folder, and a folder of 23 photos, of which two are corrupt."""
    write_folder(tmp_path / "model", model_a)
    for number in range(23):
        name = model_a.class_names[number % 7]
        photo = tmp_path / "photos" / "val" / name / f"{number}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        make_photo(number).save(photo)
        if number in (0, 20):  # the first and one of the last: each host meets one
            photo.write_bytes(photo.read_bytes()[:60])
    return tmp_path


def evaluating(files, *options, of_host=((), ())):
    data = f"folder:{files / 'photos'}"
    command = (*GNET, "evaluate", str(files / "model"), "--data", data, *options)
    commands = [[*each, *own] for each, own in zip(joined(command, 2), of_host, strict=True)]
    return launch(commands, files / "runs" / "evaluate", devices=1)


def test_two_hosts_count_what_one_counts_and_the_first_prints(files, model_a):
    source = open_source(f"folder:{files / 'photos'}", "val")
    alone = evaluate([model_a], source, batch_size=4, bad_limit=0.1)
    assert (alone.images, len(alone.damaged)) == (21, 2)
    assert 0 < alone.top1_count < alone.top5_count < 21
    run = evaluating(files, "--batch-size", "4", "--bad-limit", "0.1", "--json")
    assert run.wait(200) == [0, 0], run.text(0) + run.text(1)
    found = json.loads(next(line for line in run.lines(0) if line.startswith("{")))
    for name in ("images", "top1_count", "top5_count"):
        assert found[name] == getattr(alone, name)
    assert [each["name"] for each in found["damaged"]] == [each.name for each in alone.damaged]
    assert not any(line.startswith(("{", "wrote")) for line in run.lines(1))


def test_more_corrupt_images_than_allowed_on_all_hosts_together_end_all(files):
    run = evaluating(files, "--bad-limit", "0.05", "--batch-size", "4")  # allows one
    assert run.wait(200) == [2, 2], run.text(0) + run.text(1)
    for host in (0, 1):
        assert "2 of 23 images are corrupt" in run.text(host)


@pytest.mark.parametrize(
    ("option", "value", "differing"),
    [("--data", "folder:{}/other", "data.fingerprint"), ("--batch-size", "8", "batch-size")],
)
def test_hosts_that_would_score_other_images_are_refused(
    files, make_photo, option, value, differing
):
    photo = files / "other" / "val" / "ant" / "0.png"
    photo.parent.mkdir(parents=True)
    make_photo(0).save(photo)
    run = evaluating(files, of_host=((), (option, value.format(files))))
    assert run.wait(200) == [2, 2], run.text(0) + run.text(1)
    for host in (0, 1):
        assert f"host 1 differs: {differing} is " in run.text(host)
