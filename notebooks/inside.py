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
# # See inside a network
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/gnet-jax/gnet_jax/blob/main/notebooks/inside.ipynb)
#
# What does a channel of GoogLeNet respond to, and which pixels decide a class? This notebook optimises
# images for channels, lets the network dream on a photo, draws which pixels a class depends on, and
# compares the blocks of two networks. Every section also has a command; `docs/inside.md` lists them.
#
# It runs from top to bottom without any upload, on a CPU, in under five minutes.

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
if Path("gnet_jax/__init__.py").exists() and lacks("tyro"):
    found = {each.name: each.version for each in importlib.metadata.distributions()}
    kept = [f"{name}=={found[name]}\n" for name in ("jax", "jaxlib", "numpy") if name in found]
    Path("kept.txt").write_text("".join(kept))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", "kept.txt"]
    subprocess.run([*pip, "--editable", "."], check=True)

# The notebook and the training that it starts share a GPU, so neither may reserve all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax

import gnet_jax

print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {Path(gnet_jax.__file__).parent}")

# %% [markdown]
# ## 1. The networks
#
# This cell trains two small networks on 1,797 digits that 13 people wrote: the second has 1x1 reductions
# of a quarter of the width. Section 5 compares them. If you run the cell again, it loads them.

# %%
narrower = ("--model.reduction-factor", "0.25")
workdirs = {name: Path("runs") / f"inside-{name}" for name in ("digits", "narrow")}
Path("runs").mkdir(exist_ok=True)
runs = {}
for name, options in (("digits", ()), ("narrow", narrower)):  # both at the same time
    command = [sys.executable, "-m", "gnet_jax", "train", "digits", "--epochs", "3", *options]
    with open(workdirs[name].with_suffix(".log"), "w") as log:
        runs[name] = subprocess.Popen(
            [*command, "--workdir", str(workdirs[name])], stdout=log, stderr=log
        )
for name, run in runs.items():
    if run.wait():
        raise RuntimeError(workdirs[name].with_suffix(".log").read_text()[-2000:])
networks = {name: gnet_jax.load(workdir) for name, workdir in workdirs.items()}

# %% [markdown]
# `WEIGHTS` is `caffe` for Caffe's published weights, which are downloaded once (54 MB), another name or
# path that `docs/pretrained.md` lists, or the workdir of a run. If the weights cannot be loaded, the next
# sections look inside the first small network. `PHOTO` is the path of a photo.
#
# The photo of this example is by [danielbuechele](https://www.flickr.com/photos/danielbuechele/6061409035/),
# [CC BY 2.0](https://creativecommons.org/licenses/by/2.0/), made smaller.

# %%
WEIGHTS = "caffe"  # @param {type:"string"}
PHOTO = "docs/china.jpg"  # @param {type:"string"}

from gnet_jax.config import UserError
from gnet_jax.data.decode import decode
from gnet_jax.data.sources import open_source
from gnet_jax.inference.images import open_picture

digit = decode(open_source("digits", "val")[3].image)
try:
    photo = example = open_picture(PHOTO)
except UserError as error:
    print(f"{error}\nThe next sections use a digit instead:")
    photo, example = digit.resize((480, 480)), digit
photo.thumbnail((480, 480))
try:
    network = gnet_jax.load(WEIGHTS)
except UserError as error:
    print(f"{error}\nThe next sections look inside the network that you just trained:")
    network, example = networks["digits"], digit
for name, probability in network.predict(example)[0]:
    print(f"{probability:7.2%}  {name}")

# %% [markdown]
# ## 2. What excites a channel
#
# Each image starts as grey noise and is changed, step by step, to increase the mean activation of one
# channel of `LAYER`. All channels are optimised in one compiled program. **Look at** how the images differ
# between layers: replace `inception_4a` by `inception_3a`, whose channels like simple textures, or by
# `inception_5a`. More steps give clearer images (the default is 512).

# %%
LAYER = "inception_4a"  # @param {type:"string"}
CHANNELS = [12, 60, 100, 250, 310, 405]

import numpy as np
from IPython.display import Image as Shown
from IPython.display import display
from PIL import Image

from gnet_jax.inference.lettering import save
from gnet_jax.inference.predict import layer_shapes
from gnet_jax.lab.look.objectives import channel
from gnet_jax.lab.look.visualize import visualize


def show(picture, name):
    """Save an image or a figure in `runs` and display it."""
    file = Path("runs") / name
    save(picture, file)
    display(Shown(str(file)))


width = layer_shapes(network)[f"{LAYER}/output"].shape[-1]
chosen = [number % width for number in CHANNELS]
images, values = visualize(
    network.model,
    network.variables,
    [channel(LAYER, number) for number in chosen],
    preprocessing=network.preprocessing,
    size=min(128, 2 * network.preprocessing.image_size),
    steps=64,
)
for number, value in zip(chosen, values, strict=True):
    print(f"{LAYER}:{number}  {value:.4g}")
row = Image.fromarray(np.hstack(images[:, 0]))
show(row.resize((128 * len(chosen), 128)), "inside-channels.jpg")

# %% [markdown]
# An objective can be any function of the activations, which are a dict from each layer's name to an array
# (images, height, width, channels). This one increases a channel and decreases the mean of its layer.

# %%
image, value = visualize(
    network.model,
    network.variables,
    lambda found: found[f"{LAYER}/output"][..., chosen[0]].mean() - found[f"{LAYER}/output"].mean(),
    preprocessing=network.preprocessing,
    size=min(128, 2 * network.preprocessing.image_size),
    steps=64,
)
show(Image.fromarray(image[0]).resize((128, 128)), "inside-own.jpg")

# %% [markdown]
# ## 3. Dream
#
# DeepDream changes a photo so that it excites a whole layer more, at several sizes. The network
# exaggerates what it already sees. **Look at** the sky, which was almost empty. More steps change the
# photo more (the default is 10, at four sizes).

# %%
from gnet_jax.lab.look.dream import dream

if network.preprocessing.image_size < 100:  # smaller tiles: a smaller photo needs less time
    photo.thumbnail((120, 120))
dreamed = dream(network, photo, "inception_4c/output", octaves=3, steps=8)
show(dreamed, "inside-dream.jpg")

# %% [markdown]
# ## 4. Which pixels decide
#
# Each panel shows where the logit of the most probable class comes from. **Look at** the sum in the last
# title: integrated gradients add up to the difference between the logits of the photo and of a uniform
# image of the mean colour. A map that looks the same with random weights explains little; the option
# `sanity=True` adds a row with random weights.

# %%
from gnet_jax.lab.look.attribution import draw_attribution

show(draw_attribution(network, example), "inside-attribution.jpg")

# %% [markdown]
# ## 5. Compare two networks
#
# The matrix shows how similar the blocks of the two small networks are (linear CKA: 1 is equal up to
# rotation and scale). The curves show how accurately a linear classifier works on the output of each block.
# **Look at** the diagonal, where a block is compared with the same block of the other network, and at how
# accurate a linear classifier already is on the first block. Half of the 360 images test it, so one image
# is 0.6 points.

# %%
from gnet_jax.inference.images import Pictures
from gnet_jax.lab.look.similarity import compare, draw_comparison

found = compare(networks, Pictures("digits"))
for name, accuracies in found.probes.items():
    print(f"{name}: linear probe on the last block {accuracies[-1]:.1%}")
show(draw_comparison(found), "inside-compare.png")

# %% [markdown]
# ## What to read next
#
# - `docs/inside.md`: the commands, all objectives, and the images of a data set that excite a channel
# - the code: `gnet_jax/lab/look/objectives.py`, `visualize.py`, `dream.py`, `attribution.py`,
#   `similarity.py`
# - `notebooks/googlenet.ipynb`: the paper's ideas, training, fine-tuning and export
