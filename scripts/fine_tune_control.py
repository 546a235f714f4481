"""What training the sample's fp32 weights on its labelled test images gains: a bound for what quantization noise can.

    pip install -e '.[train]'
    python scripts/fine_tune_control.py

10,000 images are cut in 5,000 to train on (what a search calibrates on), 2,500 to select by and 2,500 to report on.
If free changes of all weights in float, led by the labels, do not lower the loss of other images, then neither does
the choice between codes next to each other. Printed: change of the cross-entropy ± half of its 95 % interval.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import fashion_mnist
import numpy as np
import onnx

from tvm_mpq.errors import MpqError
from tvm_mpq.sample import preprocess

try:
    import torch
    from sample_network import SampleNetwork
    from torch import Tensor
    from torch.nn import functional
except ModuleNotFoundError as error:
    sys.exit(f"error: {error.name} is missing: install what training needs with pip install -e '.[train]'")

PACKAGE = Path(__file__).resolve().parents[1] / "tvm_mpq" / "sample"
RATES = {"all": (3e-4, 1e-3, 3e-3), "biases": (1e-3, 1e-2)}
EPOCHS = 3
BATCH = 128


def load(path: Path) -> SampleNetwork:
    """The network of an ONNX file that ``train_sample.py`` wrote."""
    network = SampleNetwork()
    stored = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in onnx.load(path).graph.initializer}
    network.load_state_dict(network.state_dict() | stored)
    return network.eval()


def losses(network: SampleNetwork, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each image."""
    with torch.no_grad():
        logits = torch.cat([network(batch) for batch in images.split(500)])
    return functional.cross_entropy(logits, labels, reduction="none")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fine-tune the sample's weights on its test images.")
    parser.add_argument(
        "--data", type=Path, default=fashion_mnist.FOLDER, help="folder of the four .gz files"
    )
    parser.add_argument("--model", type=Path, default=PACKAGE / "fashion.onnx")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        _, test = fashion_mnist.load(options.data)
    except MpqError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    order = torch.tensor(np.random.default_rng(options.seed).permutation(len(test)))
    images = torch.from_numpy(preprocess(test.pixels))[order]
    labels = torch.from_numpy(test.labels.astype(np.int64))[order]
    half, quarter = len(test) // 2, len(test) // 4
    parts = {
        "trained on": slice(half),
        "selection": slice(half, half + quarter),
        "evaluation": slice(half + quarter, None),
    }
    original = load(options.model)
    before = {name: losses(original, images[part], labels[part]) for name, part in parts.items()}
    for which, rates in RATES.items():
        for rate in rates:
            network = copy.deepcopy(original)
            chosen = [p for name, p in network.named_parameters() if which == "all" or name.endswith("bias")]
            optimizer = torch.optim.SGD(chosen, rate, momentum=0.9)
            for epoch in range(1, EPOCHS + 1):
                # Batch norm stays as it is for inference: the compiled network has it folded away.
                for batch in torch.randperm(half).split(BATCH):
                    optimizer.zero_grad()
                    functional.cross_entropy(network(images[batch]), labels[batch]).backward()
                    optimizer.step()
                row = []
                for name, part in parts.items():
                    change = losses(network, images[part], labels[part]) - before[name]
                    row.append(
                        f"{name} {change.mean():+.4f} ± {1.96 * change.std() / len(change) ** 0.5:.4f}"
                    )
                print(f"{which}, rate {rate:g}, epoch {epoch}: {', '.join(row)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
