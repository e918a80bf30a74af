"""Inference engines: a backbone run over batches of pixels, on a CPU or a GPU."""

from extract.engines.devices import resolve_device, training_precision, without_tf32
from extract.engines.engine import Engine, make_engine, normalise
from extract.engines.quantisation import Quantised, quantised_network

__all__ = [
    "Engine",
    "Quantised",
    "make_engine",
    "normalise",
    "quantised_network",
    "resolve_device",
    "training_precision",
    "without_tf32",
]
