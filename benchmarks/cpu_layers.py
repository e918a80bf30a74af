"""Training steps with the layers of ``finetune/training/cpu_layers.py`` run in bf16, and in fp32.

Forward and back on images of noise in bf16, alternating; milliseconds a step of 32 images.

    python benchmarks/cpu_layers.py mobilenet_v2:all:96 efficientnet_lite0:all:128
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import torch

from extract.backbones import load_backbone
from finetune.blocks import cut
from finetune.training.cpu_layers import quicker_forwards, replaced

BATCH, STEPS = 32, 11


def seconds_of_step(tail: torch.nn.Module, maps: torch.Tensor, quicker: bool) -> float:
    begun = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16), replaced(quicker_forwards(tail) if quicker else {}):
        features = tail(maps)
    features.float().square().mean().backward()
    return time.perf_counter() - begun


def main() -> None:
    for words in sys.argv[1:]:
        name, depth, size = words.split(":")
        backbone = load_backbone(name, weights="random", size=int(size))
        module = backbone.module.requires_grad_(False)
        unfreeze: int | str = depth if depth == "all" else int(depth)
        trunk, tail = cut(module, backbone.trained_size, unfreeze)  # type: ignore[arg-type]
        tail.requires_grad_(True).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            maps = trunk(torch.randn(BATCH, 3, int(size), int(size)))
        maps = maps.clone().contiguous(memory_format=torch.channels_last)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(STEPS):
            for quicker, found in times.items():
                found.append(1000 * seconds_of_step(tail, maps, quicker))
        usual, ours = (statistics.median(found[1:]) for found in times.values())
        record = {"backbone": name, "unfreeze": depth, "size": int(size)}
        print(json.dumps({**record, "usual_ms": usual, "fx_ms": ours, "ratio": usual / ours}))


if __name__ == "__main__":
    main()
