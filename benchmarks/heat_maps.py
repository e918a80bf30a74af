"""How often a heat map lies where its class is seen, by method: images of two halves.

Each half is the middle of a test image of another class, enlarged; asked for is the class of one
of them, in turns. Told is how often most of the map lies on that half, and its mean share there.

    python benchmarks/heat_maps.py cifar4/test runs/* --methods HiResCAM,LayerCAM
"""

import argparse
import itertools
import random
import time
from pathlib import Path

import numpy as np
import pytorch_grad_cam
from PIL import Image

from fx.explain.heat_maps import HeatMaps
from fx.export.heads import HeadModule
from fx.options import Options
from fx.stages.models import OpenModel, open_model
from heads.head import Head


def shares(opened: OpenModel, folder: Path, method: str, count: int) -> list[float]:
    """Share of each map that lies on the half of its class."""
    ((engine, _),) = opened.engines
    fitted, side = opened.opened, engine.preprocessing.size
    head = HeadModule(fitted).steps if isinstance(fitted, Head) else fitted.network.classifier
    maps = HeatMaps(engine, head)
    other = getattr(pytorch_grad_cam, method)(maps.method.model, maps.method.target_layers)
    maps.method.activations_and_grads.release()
    maps.method = other
    files = {name: sorted((folder / name).iterdir()) for name in opened.classes}
    pairs, drawn, found = list(itertools.permutations(files, 2)), random.Random(0), []
    for number in range(count):
        names, image = pairs[number % len(pairs)], Image.new("RGB", (side, side))
        for place, name in zip((0, side // 2), names, strict=True):
            whole = Image.open(drawn.choice(files[name])).convert("RGB").resize((side, side))
            image.paste(whole.crop((side // 4, 0, side // 4 + side // 2, side)), (place, 0))
        asked = number % 2
        heat = maps.draw(np.asarray(image)[None], opened.classes.index(names[asked]))
        left = float(heat[:, : side // 2].sum() / max(heat.sum(), 1e-9))
        found.append(1 - left if asked else left)
    return found


def main() -> None:
    """Print a line a model and method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of class folders")
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--methods", default="HiResCAM")
    parser.add_argument("--count", type=int, default=100)
    given = parser.parse_args()
    for model, method in itertools.product(given.models, given.methods.split(",")):
        opened, begun = open_model(model, Options(device="cpu")), time.process_time()
        found = np.array(shares(opened, given.images, method, given.count))
        cpu = 1000 * (time.process_time() - begun) / given.count
        print(
            f"{model.name}  {method}  {np.mean(found > 0.5):.2f} on the right half, "
            f"{found.mean():.2f} of the maps; {cpu:.0f} ms of CPU an image",
            flush=True,
        )


if __name__ == "__main__":
    main()
