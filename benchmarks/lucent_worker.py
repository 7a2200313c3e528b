"""Lucent's optimisation of a sheet, timed by `visualize.py` in its own interpreter."""

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from worker import Cases, serve


def find_lucent() -> Path:
    """Returns the folder of Lucent's package."""
    spec = importlib.util.find_spec("lucent")
    if spec is None or spec.submodule_search_locations is None:
        sys.exit("torch-lucent is not installed; pip install --no-deps torch-lucent")
    return Path(spec.submodule_search_locations[0])


def load(name: str, file: Path) -> Any:
    """Returns a module of Lucent, from its file: the package imports libraries for notebooks."""
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def prepare(setup: dict[str, Any]) -> tuple[dict[str, Any], Cases]:
    """Returns versions, and the case "sheet"; see `visualize.py` for the setup."""
    torch.set_num_threads(setup["threads"])
    torch.manual_seed(0)
    package = find_lucent()
    parts = package / "optvis" / "param"
    spatial, color = (load(each, parts / f"{each}.py") for each in ("spatial", "color"))
    zoo = package / "modelzoo" / "inceptionv1"
    helpers = load("lucent_helpers", zoo / "helper_layers.py")
    for name in ("lucent", "lucent.modelzoo", "lucent.modelzoo.inceptionv1"):
        sys.modules[name] = types.ModuleType(name)
    vars(sys.modules["lucent.modelzoo.inceptionv1"])["helper_layers"] = helpers
    network = load("lucent_network", zoo / "InceptionV1.py").InceptionV1().eval()
    network.requires_grad_(False)
    found: list[torch.Tensor] = []
    network.mixed4a.register_forward_hook(lambda _, __, y: found.append(y))
    channels, size = setup["channels"], setup["size"]

    def sheet() -> None:
        params, image = spatial.fft_image((channels, 3, size, size))
        pixels = color.to_valid_rgb(image, decorrelate=True)
        adam = torch.optim.Adam(params, lr=0.05)
        for _ in range(setup["steps"]):
            adam.zero_grad()
            found.clear()
            network(255 * pixels() - 117)
            activations = found[0]
            score = torch.stack([activations[n, n].mean() for n in range(channels)]).sum()
            (-score).backward()
            adam.step()

    return {"torch": torch.__version__, "lucent_threads": torch.get_num_threads()}, {"sheet": sheet}


if __name__ == "__main__":
    serve(prepare)
