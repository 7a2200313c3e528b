r"""Compare the images per CPU second of this project's loader, torch's DataLoader and tf.data.

    python benchmarks/input_pipeline.py --peer-python PEERS/bin/python --json input.json

Each loader reads the same folder of JPEGs (about 110 KB, 500x375, generated from a seed; or
--photos FOLDER with train/CLASS/*.jpg), crops a random rectangle with 8 to 100 % of the area and
aspect 3/4 to 4/3, resizes it to 224x224 and yields batches of 32 uint8 images. The others mirror
half of the images; ours are mirrored later, in the compiled step. The resize filters differ:

    ours, pillow         Pillow's triangular filter, widened when shrinking: antialiased
    ours, fast           bilinear after a Gaussian of the same variance: antialiased (`[fast]`)
    torchvision, PIL     Pillow's filter, as ours; crops before converting to tensors, as is usual
    torchvision, tensor  torch's antialiased filter on uint8 tensors (transforms.v2)
    tf.data              bilinear without antialiasing (if the peers' environment has TensorFlow)

Prints images per second of CPU time (one core's share) and images/s of wall time, with as many
threads (ours, tf.data) or worker processes (torch) as cores.

    python benchmarks/input_pipeline.py --peer-python PEERS/bin/python \
        --hosts 1 8 64 256 --global-batch 4096 --repeats 5

also times the last of N hosts, which loads its slice of the global batch as in a run on N hosts.
"""

import argparse
import io
import itertools
import tempfile
from pathlib import Path

import numpy as np
import PIL
from PIL import Image
from side_by_side import Peer, Timer, in_turns, keep, machine, show, timer

from gnet_jax.config import AugmentConfig, Preprocessing
from gnet_jax.data.batches import cropper, train_batches
from gnet_jax.data.sources import DataError, Example, Source, open_source
from gnet_jax.training.sharding import keep_freed_memory

BATCH = 32


def write_photos(folder: Path, count: int) -> None:
    """Write JPEGs as large as ImageNet's, in two classes: noise at five scales."""
    for index in range(count):
        generator = np.random.default_rng(index)
        pixels = np.full((375, 500, 3), 128.0)
        for side, amplitude in ((5, 60), (15, 40), (50, 25), (120, 18), (400, 22)):
            coarse = generator.integers(0, 256, (max(2, side * 3 // 4), side, 3), np.uint8)
            smooth = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
            pixels += (np.asarray(smooth, float) - 128) / 128 * amplitude
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=95)
        for split in ("train", "val"):
            file = folder / split / "ab"[index % 2] / f"{index}.jpg"
            if split == "train" or index < 2:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(stream.getvalue())


class Counted:
    """A source that counts how many examples are read from it."""

    def __init__(self, source: Source) -> None:
        self._source, self.read = source, 0
        self.class_names, self.split = source.class_names, source.split
        self.labels, self.left_out = source.labels, source.left_out
        self.describe, self.fingerprint = source.describe, source.fingerprint

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        self.read += 1
        return self._source[index]


def ours(
    folder: Path, decoder: str, images: int, threads: int, batch_size: int = BATCH, hosts: int = 1
) -> Timer:
    """Returns a timer of this project's batches from the folder, as the last of the hosts reads it.

    The loader reads ahead, and reads at least one batch. The seconds are multiplied by `images` /
    number of images read.
    """
    source = Counted(open_source(f"folder:{folder}", "train"))
    cropper(decoder)  # pyright: ignore[reportArgumentType]
    keep_freed_memory()  # as train.py does on CPUs; otherwise, new memory is cleared for each batch

    def run() -> None:
        batches = train_batches(
            source,
            batch_size=batch_size,
            host=hosts - 1,
            hosts=hosts,
            preprocessing=Preprocessing(),
            augmentation=AugmentConfig(),
            decoder=decoder,  # pyright: ignore[reportArgumentType]
            seed=0,
            threads=threads,
        )
        for _ in itertools.islice(batches, -(-images * hosts // batch_size)):
            pass
        batches.close()

    def in_proportion(calls: int) -> dict[str, float]:
        source.read = 0
        seconds = timer(run)(calls)
        return {kind: each * images * calls / source.read for kind, each in seconds.items()}

    return in_proportion


def main() -> None:
    """Time the loaders in turns, then print and save the medians."""
    a = arguments()
    images = a.images // BATCH * BATCH
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.photos or Path(temporary)
        if a.photos is None:
            write_photos(folder, min(images, 256))
        files = list((folder / "train").glob("*/*"))
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        setup = {
            "folder": str(folder / "train"),
            "images": images,
            "batch": BATCH,
            "workers": a.threads,
        }
        peer = Peer(a.peer_python, "loader_worker.py", setup)
        facts = {
            "ours": {"pillow": PIL.__version__},
            "peers": peer.facts,
            "machine": machine(),
            "photos": {"files": len(files), "mean_kb": round(size, 1)},
            "images": images,
            "threads": a.threads,
        }
        for name, value in facts.items():
            print(f"{name}: {value}")
        timers = {"ours, pillow": ours(folder, "pillow", images, a.threads)}
        try:
            timers["ours, fast"] = ours(folder, "fast", images, a.threads)
        except DataError as error:
            print(f"skipping ours, fast: {error}")
        slices = {f"ours, pillow, 1 of {n} hosts": n for n in a.hosts}
        for name, hosts in slices.items():
            timers[name] = ours(folder, "pillow", images, a.threads, a.global_batch, hosts)
        timers |= {name: peer.timer(name) for name in peer.facts["cases"]}
        medians = in_turns(timers, a.repeats)
        peer.close()

    def rate(name: str, kind: str) -> float:
        return images / medians[name][kind]

    reference = rate("torchvision, PIL", "cpu")
    rows = [
        (
            name,
            f"{rate(name, 'cpu'):.0f}",
            f"{rate(name, 'cpu') / reference:.2f}",
            f"{rate(name, 'wall'):.0f}",
        )
        for name in timers
    ]
    show(("loader", "images/CPU second", "relative to torchvision, PIL", "images/s"), rows)
    ratios = {name: rate(name, "cpu") / reference for name in timers}
    for name, hosts in slices.items():
        change = rate(next(iter(slices)), "cpu") / rate(name, "cpu") - 1
        print(f"{a.global_batch // hosts} images a batch, {name}: CPU seconds {change:+.1%}")
    facts |= {"global_batch": a.global_batch, "repeats": a.repeats}
    keep(a.json, facts | {"medians": medians, "ratios": ratios})


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="python of the peers' environment")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--photos", type=Path, help="a folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("--images", type=int, default=512, help="images per measurement")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=machine()["cores"])
    parser.add_argument("--hosts", type=int, nargs="*", default=[], help="numbers of hosts")
    parser.add_argument("--global-batch", type=int, default=4096, help="images of all hosts")
    parsed = parser.parse_args()
    for hosts in parsed.hosts:
        if hosts < 1 or parsed.global_batch % hosts:
            parser.error(f"--global-batch {parsed.global_batch} does not divide over {hosts} hosts")
    if parsed.images < BATCH:
        parser.error(f"--images is {parsed.images}; it must be at least {BATCH}, one batch")
    return parsed


if __name__ == "__main__":
    main()
