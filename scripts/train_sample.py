"""Train the embedded sample and write it to ``tvm_mpq/sample``: ``fashion.onnx`` and ``fashion.npz``.

    apt-get install dataset-fashion-mnist
    pip install -e '.[train]'
    python scripts/train_sample.py

5,000 of the training images are held out to judge changes of the training by, and the calibration images come
from them. A run looks at the test images once, at its end: choose nothing by what it says there.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

import fashion_mnist
import numpy as np
from fashion_mnist import Images

from tvm_mpq.errors import MpqError
from tvm_mpq.files import write_beside
from tvm_mpq.sample import MEAN, STD, preprocess

try:
    import torch
    from sample_network import SampleNetwork, parameter_count, to_onnx
    from torch import Tensor, nn
    from torch.nn import functional
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is missing: install what training needs with pip install -e '.[train]'")

PACKAGE = Path(__file__).resolve().parents[1] / "tvm_mpq" / "sample"
HELD_OUT = 5_000
CALIBRATION = 1_000
BATCH = 128
PEAK_LEARNING_RATE = 0.1
WEIGHT_DECAY = 2e-4
MAX_SHIFT = 1


def split(train: Images, test: Images, random: np.random.Generator) -> tuple[Images, Images, Images]:
    """Images to train on, images held out, and of these some to calibrate with, none of them a test image."""
    order = random.permutation(len(train))
    held_out = train[order[:HELD_OUT]]
    seen = {image.tobytes() for image in test.pixels}
    fresh = np.array([i for i, image in enumerate(held_out.pixels) if image.tobytes() not in seen])
    return train[order[HELD_OUT:]], held_out, held_out[fresh[:CALIBRATION]]


def augment(images: Tensor, background: float) -> Tensor:
    """Mirror half of the images, and move each by up to MAX_SHIFT pixels both ways."""
    samples, _, height, width = images.shape
    padded = functional.pad(images, (MAX_SHIFT,) * 4, value=background)
    top, left = torch.randint(0, 2 * MAX_SHIFT + 1, (2, samples, 1))
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(samples, 1) < 0.5, columns, columns.flip(1))
    rows = top + torch.arange(height)
    sample = torch.arange(samples)[:, None, None]
    return padded[sample, 0, rows[:, :, None], columns[:, None, :]][:, None]


def train_network(network: SampleNetwork, images: Images, held_out: Images, epochs: int) -> None:
    """Stochastic gradient descent with momentum on a one-cycle schedule (Smith, arXiv 1803.09820)."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, PEAK_LEARNING_RATE, momentum=0.9, nesterov=True)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, total_steps=epochs * steps, pct_start=0.25, cycle_momentum=False
    )
    inputs = torch.from_numpy(preprocess(images.pixels))
    labels = torch.from_numpy(images.labels.astype(np.int64))
    for epoch in range(1, epochs + 1):
        network.train()
        started, total = time.perf_counter(), 0.0
        for batch in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            loss = functional.cross_entropy(network(augment(inputs[batch], -MEAN / STD)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        loss_held_out, accuracy = evaluate(network, held_out)
        print(
            f"epoch {epoch}/{epochs}: loss {total / steps:.4f}, held out {loss_held_out:.4f}, "
            f"accuracy {accuracy:.4f}, {time.perf_counter() - started:.0f} s",
            flush=True,
        )


def evaluate(network: nn.Module, images: Images) -> tuple[float, float]:
    """Mean cross-entropy and accuracy."""
    network.eval()
    labels = torch.from_numpy(images.labels.astype(np.int64))
    with torch.no_grad():
        inputs = torch.from_numpy(preprocess(images.pixels))
        logits = torch.cat([network(batch) for batch in inputs.split(500)])
    return functional.cross_entropy(logits, labels).item(), (logits.argmax(1) == labels).float().mean().item()


def sample_arrays(test: Images, calibration: Images) -> bytes:
    """The content of ``fashion.npz``."""
    stream = io.BytesIO()
    np.savez_compressed(
        stream,
        images=test.pixels,
        labels=test.labels,
        calibration_images=calibration.pixels,
        calibration_labels=calibration.labels,
    )
    return stream.getvalue()


def make_sample(data: Path, output: Path, seed: int, epochs: int, identities: bool) -> None:
    """Train, test once, and write both files."""
    train, test = fashion_mnist.load(data)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    train, held_out, calibration = split(train, test, np.random.default_rng(seed))
    started = time.perf_counter()
    network = SampleNetwork(identities).to(memory_format=torch.channels_last)
    train_network(network, train, held_out, epochs)
    seconds = time.perf_counter() - started
    loss, accuracy = evaluate(network, test)
    parameters = parameter_count(network)
    print(f"test: loss {loss:.4f}, accuracy {accuracy:.4f}; {parameters:,} parameters, {seconds:.0f} s")
    metadata = {
        "preprocess": f"x = (pixel / 255 - {MEAN}) / {STD}",
        "mean": str(MEAN),
        "std": str(STD),
        "dataset": "Fashion-MNIST",
        "parameters": str(parameters),
        "test_accuracy": f"{accuracy:.4f}",
        "training_seed": str(seed),
        "training_epochs": str(epochs),
        "torch_version": torch.__version__,
    }
    write_beside(output / "fashion.onnx", to_onnx(network, metadata).SerializeToString())
    write_beside(output / "fashion.npz", sample_arrays(test, calibration))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the embedded sample on Fashion-MNIST.")
    parser.add_argument(
        "--data", type=Path, default=fashion_mnist.FOLDER, help="folder of the four .gz files"
    )
    parser.add_argument("--output", type=Path, default=PACKAGE, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument(
        "--no-identities", action="store_true", help="leave the ways around the layers out (docs/findings.md)"
    )
    options = parser.parse_args(arguments)
    try:
        make_sample(options.data, options.output, options.seed, options.epochs, not options.no_identities)
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
