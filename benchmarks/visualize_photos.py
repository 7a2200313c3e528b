"""Check that images made by `gnet visualize` excite their channels more than any photo does.

    python benchmarks/visualize_photos.py MODEL features PHOTOS --json photos.json

`features` is the folder of single images that `gnet visualize ... --out features.png` wrote for
channels ("inception_4a:12"). PHOTOS is a folder; `--count` of its photos are chosen at random.
Each photo is cropped as for a prediction. The value that an image reached is divided by the
largest mean activation of its channel on a photo. Exits with 1 if a ratio is not above 1.
"""

import argparse
import json
import random
from pathlib import Path

from PIL import Image
from side_by_side import keep, show

import gnet_jax
from gnet_jax.training.sharding import use_compilation_cache

SUFFIXES = (".jpg", ".jpeg", ".JPEG", ".png")


def main() -> int:
    """Print a table of all channels; returns 1 if a photo excites a channel at least as much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="any model that gnet_jax.load takes")
    parser.add_argument("images", type=Path, help="folder of optimised images")
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--count", type=int, default=1000, help="number of photos")
    parser.add_argument("--json", type=Path, help="file for the result")
    a = parser.parse_args()
    use_compilation_cache()
    trained = gnet_jax.load(a.model)
    reached = {}
    for file in sorted(a.images.glob("*.png")):
        with Image.open(file) as image:
            notes = json.loads(image.info["gnet"])
        reached[notes["name"]] = notes["value"]
    photos = sorted(str(path) for path in a.photos.rglob("*") if path.suffix in SUFFIXES)
    if not reached or not photos:
        parser.error(f"{a.photos if reached else a.images} contains no images")
    photos = random.Random(0).sample(photos, min(a.count, len(photos)))
    highest = {}
    for layer in dict.fromkeys(name.rpartition(":")[0] for name in reached):
        print(f"{layer}: computing the activations on {len(photos):,} photos", flush=True)
        highest[layer] = trained.features(photos, layer=layer).max(axis=0)
    rows = {
        name: (value, float(highest[layer][int(index)]))
        for name, value in reached.items()
        for layer, _, index in [name.rpartition(":")]
    }
    ratios = {name: value / max(photo, 1e-9) for name, (value, photo) in rows.items()}
    show(
        ("channel", "optimised", "highest of the photos", "ratio"),
        [(name, *(f"{each:.4g}" for each in (*rows[name], ratios[name]))) for name in rows],
    )
    above = sum(ratio > 1 for ratio in ratios.values())
    print(f"{above} of {len(ratios)} above all of {len(photos):,} photos")
    keep(a.json, {"photos": len(photos), "values": rows, "ratios": ratios})
    return int(above < len(ratios))


if __name__ == "__main__":
    raise SystemExit(main())
