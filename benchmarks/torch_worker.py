"""torchvision's GoogLeNet and onnxruntime, timed by `peers.py` in their own interpreter."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from worker import Cases, serve


def prepare(setup: dict[str, Any]) -> tuple[dict[str, Any], Cases]:
    """Returns versions, and cases `train_bN`, `forward_bN` and `onnx_bN` for batches of N images.

    The case `product` multiplies two matrices.

    `setup`: "product" (rows of the matrices), "batches", "train_batch", "size", "threads", "device"
    ("cpu" or "cuda"), "dtype" ("float32", or autocast's), "compile" (use torch.compile's strongest
    mode), "onnx" (a file or None).
    """
    torch.set_num_threads(setup["threads"])
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True  # worth it, because every size is used repeatedly
    if setup["device"] == "cuda":
        torch.set_float32_matmul_precision("high")  # TensorFloat-32, XLA's default
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision warns that its initialisation is slow
        model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    model = model.to(setup["device"], memory_format=torch.channels_last)
    network = model
    if setup["compile"]:  # a program for each size, as XLA does
        network = torch.compile(model, mode="max-autotune", dynamic=False)
    cases: Cases = {}
    facts = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "compiled": setup["compile"],
    }
    cases["product"] = _product(setup)
    for batch in setup["batches"]:
        cases[f"forward_b{batch}"] = _forward(network, _images(batch, setup), setup)
    batch = setup["train_batch"]
    cases[f"train_b{batch}"] = step = _train(network, _images(batch, setup), setup)
    if setup["device"] == "cuda":
        step()  # also autotunes cuDNN
        torch.cuda.reset_peak_memory_stats()
        step()
        facts["train_bytes"] = torch.cuda.max_memory_allocated()
    if setup["onnx"] is not None:
        facts["onnxruntime"], session = _session(setup["onnx"], setup["threads"])
        for batch in setup["batches"]:
            cases[f"onnx_b{batch}"] = _onnx(session, batch, setup["size"])
    return facts, cases


def _images(batch: int, setup: dict[str, Any]) -> torch.Tensor:
    size = setup["size"]
    pixels = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    return torch.from_numpy(pixels).to(setup["device"], memory_format=torch.channels_last)


def _autocast(setup: dict[str, Any]) -> torch.autocast:
    dtype = getattr(torch, setup["dtype"])
    return torch.autocast(setup["device"], dtype, enabled=dtype != torch.float32)


def _finish(setup: dict[str, Any]) -> None:
    if setup["device"] == "cuda":
        torch.cuda.synchronize()


def _product(setup: dict[str, Any]) -> Callable[[], None]:
    """Returns a function that multiplies two matrices, to measure the device's peak rate."""
    dtype = getattr(torch, setup["dtype"])
    a = torch.randn(setup["product"], setup["product"], device=setup["device"], dtype=dtype)

    def product() -> None:
        a @ a
        _finish(setup)

    return product


def _forward(model: Any, x: torch.Tensor, setup: dict[str, Any]) -> Callable[[], None]:
    @torch.inference_mode()
    def forward() -> None:
        torch.compiler.cudagraph_mark_step_begin()  # compiled networks may reuse their outputs
        model.eval()
        with _autocast(setup):
            model(x)
        _finish(setup)

    return forward


def _train(model: Any, x: torch.Tensor, setup: dict[str, Any]) -> Callable[[], None]:
    labels = torch.arange(len(x), device=x.device) % 1000
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=0.01,
        momentum=0.9,
        weight_decay=2e-4,
        fused=setup["device"] == "cuda",
    )

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with _autocast(setup):
            outputs = model(x)
            heads = outputs.aux_logits1, outputs.aux_logits2
            loss = F.cross_entropy(outputs.logits, labels)
            loss = loss + 0.3 * sum(F.cross_entropy(head, labels) for head in heads)
        loss.backward()
        optimizer.step()
        _finish(setup)

    return step


def _session(file: str, threads: int) -> tuple[str, Any]:
    """Returns the version of onnxruntime and a session."""
    import onnxruntime  # used on CPUs only, so it may be missing elsewhere

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads spin during a run, as by default, but stop afterwards, before the next timer runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return onnxruntime.__version__, session


def _onnx(session: Any, batch: int, size: int) -> Any:
    pixels = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    return lambda: session.run(["logits"], {"input": pixels})


if __name__ == "__main__":
    serve(prepare)
