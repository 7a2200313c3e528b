# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # GoogLeNet in JAX: the paper's five ideas, on your own images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/gnet-jax/gnet_jax/blob/main/notebooks/googlenet.ipynb)
#
# [Going deeper with convolutions](https://arxiv.org/abs/1409.4842) has 22 layers and seven million
# weights. This notebook builds that network, shows where its cost goes, trains a small copy while you
# watch, and then uses it: predictions with an activation map, fine-tuning, an ablation, an export.
#
# It runs from top to bottom without any upload, on a CPU, in under five minutes; in Colab, choose a CPU or
# a GPU, because a TPU cannot be shared with the training that this notebook starts. If you have a photo or
# a folder of photos, put its path into the cell that asks for it and run the cell again. To Colab, upload a
# folder as a zip file, and run `!unzip -q /content/photos.zip -d /content/photos` in a new cell.

# %%
# Uses gnet_jax from the checkout that contains this notebook, from a checkout in the working directory,
# or from an installed package. If there is none, clones the repository. Installs what is missing, and
# keeps the versions of jax and numpy that are installed.
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/gnet-jax/gnet_jax"


def lacks(package):
    return importlib.util.find_spec(package) is None


for folder in (Path.cwd(), Path.cwd().parent, Path("gnet_jax").absolute()):
    if (folder / "gnet_jax" / "__init__.py").exists():
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        break
if lacks("gnet_jax"):
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "gnet_jax"], check=True)
    os.chdir("gnet_jax")
    sys.path.insert(0, str(Path.cwd()))
if Path("gnet_jax/__init__.py").exists() and any(map(lacks, ("tyro", "onnx"))):
    found = {each.name: each.version for each in importlib.metadata.distributions()}
    kept = [f"{name}=={found[name]}\n" for name in ("jax", "jaxlib", "numpy") if name in found]
    Path("kept.txt").write_text("".join(kept))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", "kept.txt"]
    subprocess.run([*pip, "--editable", ".[export]"], check=True)

# The notebook and the training that it starts share a GPU, so neither may reserve all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

import gnet_jax

print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {Path(gnet_jax.__file__).parent}")

# %% [markdown]
# ## 1. The network and what it costs
#
# `googlenet("paper")` is the network of the paper's Table 1: true 5x5 convolutions, local response
# normalisation, two auxiliary heads. The ledger computes the exact cost of every layer from its shapes;
# the network does not run yet. **Look at** the last two lines: the auxiliary heads nearly double the
# weights, but cost half a percent of the multiply-adds. Inference uses neither of them.

# %%
from rich.console import Console

from gnet_jax.lab.cost.ledger import ledger_table, network_ledger, worked_examples

costs = network_ledger(gnet_jax.googlenet("paper"), image_size=224)
console = Console(width=100, force_jupyter=False)
console.print(ledger_table(costs, "GoogLeNet, paper, 224x224"))

# %% [markdown]
# ## 2. What a 1x1 reduction saves
#
# A 5x5 convolution from 480 to 48 channels on a 14x14 grid is expensive because it reads all 480. The
# paper first reduces them to 16 by a 1x1 convolution. **Look at** the first two numbers: an output of
# the same shape for a twentieth of the work. The other two numbers compare a fully connected layer
# with global average pooling, which has no weights.

# %%
for what, cost in worked_examples():
    print(f"{cost:>13,}  {what}")

# %% [markdown]
# This figure compares the whole network, block by block. Without reductions (the naive block), each
# block also passes all channels of its max pool to the next block, which must read them. **Look at**
# how the orange bars grow within each stage.

# %%
import matplotlib.pyplot as plt


def by_block(variant):
    blocks = {}
    for layer in network_ledger(gnet_jax.googlenet(variant), 224).layers:
        if layer.name.startswith("inception_"):
            name = layer.name.split("/")[0].removeprefix("inception_")
            blocks[name] = blocks.get(name, 0) + layer.macs / 1e6
    return blocks


reduced, naive = by_block("paper"), by_block("naive")
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
places = range(len(reduced))
axes.bar(
    [p - 0.2 for p in places], reduced.values(), 0.4, label="with 1x1 reductions", color="#1b6ca8"
)
axes.bar([p + 0.2 for p in places], naive.values(), 0.4, label="naive", color="#edae49")
axes.set_xticks(places, reduced)
axes.set(
    xlabel="block", ylabel="million multiply-adds", title="Cost of each Inception block at 224x224"
)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 3. Train it
#
# A quarter of the width, batch norm, 16x16 images: 1,797 digits that 13 people wrote. `gnet train` runs
# in a process of its own, and the notebook plots what it logs. The first minute is compilation.
# **Look at** the two auxiliary heads. They are attached halfway up the network, learn as the main head
# does, and pass gradients to the early layers.

# %%
import hashlib

from IPython.display import Image, clear_output, display

from gnet_jax.lab.sweeps.figures import draw_curves


def ended(run, within):
    """Returns True if a process ends within `within` seconds."""
    try:
        run.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


def draw_run(workdir):
    """Replace the output of the cell with the curves of a run, if it has logged any metrics."""
    metrics, picture = workdir / "metrics.jsonl", workdir.with_suffix(".png")
    if metrics.exists() and metrics.stat().st_size:
        draw_curves([workdir], picture)
        clear_output(wait=True)
        display(Image(str(picture), width=800))


def train(name, *arguments, data=""):
    """Run `gnet train` to its end, drawing its curves every few seconds. Returns the workdir.

    The workdir's name depends on the arguments and on `data`. If you edit them and run the cell
    again, a new run starts.
    """
    inputs = hashlib.sha256(repr((arguments, data)).encode()).hexdigest()
    workdir = Path(f"runs/{name}-{inputs[:6]}")
    workdir.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "gnet_jax", "train", *arguments, "--workdir", str(workdir)]
    log = workdir.with_suffix(".log")
    with open(log, "w") as out, subprocess.Popen(command, stdout=out, stderr=out) as run:
        while not ended(run, within=5):
            draw_run(workdir)
    text = log.read_text()
    if run.returncode:
        raise RuntimeError(text[-2000:])
    draw_run(workdir)
    plan, _, progress = text.partition("compiling")
    print(plan + progress[max(progress.find("done in"), 0) :])
    return workdir


short = ("--epochs", "6", "--eval-every-epochs", "2", "--log-every-steps", "20")
digits = train("digits", "digits", *short)

# %% [markdown]
# If you run the cell again, it prints that all steps are done. If you interrupt it, or after a crash, run it again to
# resume from the latest checkpoint; the final weights have the same bits as without the interruption.
#
# ## 4. Predict, and see why
#
# `WEIGHTS` is `caffe` for Caffe's published weights, which are downloaded once (54 MB), or the path of a
# file of weights. `PHOTO` is the path of a photo. In Colab, upload your photo in the Files panel and enter
# its full path: `/content/photo.jpg`. If the weights or the photo cannot be loaded, the network that you
# just trained reads a digit. **Look at** the map: it is bright where the evidence for the class was found. Global
# average pooling gives this map without a gradient.
#
# The photo of this example is by [danielbuechele](https://www.flickr.com/photos/danielbuechele/6061409035/),
# [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/), made smaller.

# %%
WEIGHTS = "caffe"  # @param {type:"string"}
PHOTO = "docs/china.jpg"  # @param {type:"string"}

from gnet_jax.config import UserError
from gnet_jax.data.decode import decode
from gnet_jax.data.sources import open_source
from gnet_jax.inference.cam import ActivationMapper, draw
from gnet_jax.inference.images import open_picture

try:
    network, picture = gnet_jax.load(WEIGHTS), open_picture(PHOTO)
except UserError as error:
    print(f"{error}\nThe network that you just trained reads a digit that was not trained on:")
    network = gnet_jax.load(digits)
    picture = decode(open_source("digits", "val")[3].image)
[guesses] = network.predict(picture)
for name, probability in guesses:
    print(f"{probability:7.2%}  {name}")
display(draw(ActivationMapper(network)(picture)["main"]))

# %% [markdown]
# ## 5. Fine-tune on a folder
#
# `PHOTOS` is a folder with `train/CLASS/*.jpg` and `val/CLASS/*.jpg`. Fine-tuning starts from `WEIGHTS`
# above. If `PHOTOS` is empty, this cell writes a folder with inverted digits, black on white instead of
# white on black, which the network that you trained has never seen, and fine-tunes that network.
# **Look at** the plan that the run prints first: which layers were loaded, which are new, and which stay
# frozen. Then compare the accuracy before fine-tuning, which this cell prints, with the accuracy after it,
# in the last lines of the next cell.

# %%
PHOTOS = ""  # @param {type:"string"}

import numpy as np

from gnet_jax.inference.evaluate import evaluate


def write_inverted_digits(folder, each):
    """Write the first `each[split]` digits of every class, inverted, into class folders."""
    for split, count in each.items():
        source = open_source("digits", split)
        written = dict.fromkeys(source.class_names, 0)
        for index in range(len(source)):
            pixels, label = source[index]
            name = source.class_names[label]
            if written[name] < count:
                written[name] += 1
                file = folder / split / name / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                decode(255 - np.asarray(pixels)).save(file)


photos = Path(PHOTOS) if PHOTOS else Path("runs/inverted")
start = WEIGHTS if PHOTOS else str(digits)
options = ["--data.source", f"folder:{photos}", "--init", start, "--log-every-steps", "5"]
if not PHOTOS:
    write_inverted_digits(photos, {"train": 30, "val": 20})
    options += ["--batch-size", "20", "--epochs", "4", "--optim.freeze", "conv*"]
    options += ["--optim.loaded-lr-factor", "1", "--augment.flip", "False"]
splits = {split: open_source(f"folder:{photos}", split) for split in ("train", "val")}
if not PHOTOS:
    before = evaluate([gnet_jax.load(start)], splits["val"])
    print(f"before: top-1 {before.top1:.2%}")

# %%
contents = [source.fingerprint() for source in splits.values()]
finetuned = train("finetuned", "finetune_folder", *options, data=contents)

# %% [markdown]
# ## 6. Ablate a reduction
#
# How narrow can the 1x1 reductions be? This cell trains with a quarter of their widths and compares the
# result with the first run. One run of each says little: on 360 images, one digit is 0.3 points.
# `gnet ablate` trains each network with several seeds and reports the spread.

# %%
narrow = train("narrow", "digits", *short, "--model.reduction-factor", "0.25")

# %%
import json

for workdir, factor in ((digits, 1.0), (narrow, 0.25)):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    top1 = [line["val/top1"] for line in lines if "val/top1" in line][-1]
    small = gnet_jax.googlenet(
        "batch_norm", 10, stem="small", width_multiplier=0.25, reduction_factor=factor
    )
    cost = network_ledger(small, 16)
    numbers = f"{cost.params:>8,} parameters  {cost.macs:>10,} multiply-adds"
    print(f"reductions x{factor:<4}  {numbers}  top-1 {top1:.2%}")

# %% [markdown]
# ## 7. Take it elsewhere
#
# ONNX and StableHLO files run without this project. `export` runs each file once after writing it and
# returns the largest difference from the network's own outputs, divided by the largest output.
# The command for this is `gnet export WORKDIR models/exported.onnx`.

# %%
from gnet_jax.convert.export import export

Path("models").mkdir(exist_ok=True)
for kind in ("onnx", "stablehlo"):
    difference = export(gnet_jax.load(finetuned), f"models/exported.{kind}")
    print(f"wrote models/exported.{kind}; largest difference {difference:.1e}")

# %% [markdown]
# ## What to read next
#
# - `docs/first_hour.md`: the same path in ten commands
# - the code, in reading order: `gnet_jax/model/widths.py`, `blocks.py`, `googlenet.py`,
#   `gnet_jax/training/step.py`
# - `docs/pretrained.md`: the published weights, 144 crops, ensembles
# - `docs/data.md`: your own data, checked and shown before you train
