"""torchvision's GoogLeNet and onnxruntime, to be timed by `peers.py` in their own interpreter."""

import os
import warnings
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
import torchvision
from worker import Cases, serve


def prepare(setup: dict[str, Any]) -> tuple[dict[str, Any], Cases]:
    """Cases `train_bN`, `forward_bN` and `onnx_bN` for the batches that `setup` asks for.

    `setup`: "batches", "train_batch", "size", "threads", "onnx" (a file).
    """
    torch.set_num_threads(setup["threads"])
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision announces that its initialisation is slow
        model = torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    model = model.to(memory_format=torch.channels_last)
    size, cases = setup["size"], {}
    session = _session(setup["onnx"], setup["threads"])
    for batch in setup["batches"]:
        cases[f"forward_b{batch}"] = _forward(model, _images(batch, size))
        cases[f"onnx_b{batch}"] = _onnx(session, batch, size)
    batch = setup["train_batch"]
    cases[f"train_b{batch}"] = _train(model, _images(batch, size))
    facts = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "onnxruntime": onnxruntime.__version__,
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }
    return facts, cases


def _images(batch: int, size: int) -> torch.Tensor:
    pixels = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    return torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)


def _forward(model: torch.nn.Module, x: torch.Tensor) -> Any:
    @torch.inference_mode()
    def forward() -> None:
        model.eval()
        model(x)

    return forward


def _train(model: torch.nn.Module, x: torch.Tensor) -> Any:
    labels = torch.arange(len(x)) % 1000
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=2e-4)

    def step() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        outputs = model(x)
        heads = outputs.aux_logits1, outputs.aux_logits2
        loss = F.cross_entropy(outputs.logits, labels)
        loss = loss + 0.3 * sum(F.cross_entropy(head, labels) for head in heads)
        loss.backward()
        optimizer.step()

    return step


def _session(file: str, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads spin during a run, as they do by default, but not on into what is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _onnx(session: onnxruntime.InferenceSession, batch: int, size: int) -> Any:
    pixels = np.random.default_rng(0).normal(size=(batch, 3, size, size)).astype(np.float32)
    return lambda: session.run(["logits"], {"input": pixels})


if __name__ == "__main__":
    serve(prepare)
