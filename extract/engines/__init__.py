"""Inference engines: a backbone run over batches of pixels, on a CPU or a GPU."""

from extract.engines.agreement import find_stale_sets
from extract.engines.base import Engine, normalise
from extract.engines.choice import default_batch_size, make_engine
from extract.engines.devices import resolve_device, training_precision, without_tf32
from extract.engines.int8 import quantised_network
from extract.engines.openvino_engine import OpenVINOEngine
from extract.engines.torch_engine import TorchEngine
