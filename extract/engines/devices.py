"""Devices, and the precisions in which they compute."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from extract.errors import FxError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"
NO_INT8 = "int8 is for extracting features and predicting, in OpenVINO; use `precision=fp32`"


def resolve_device(device: str = "auto") -> torch.device:
    """Choose a device: ``auto`` takes CUDA, then MPS, then the CPU.

    Raises
    ------
    FxError
        If the device is asked for by name and is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(name for name, there in available.items() if there)
    if device not in available:
        raise FxError(f"unknown device {device!r}; choose auto, cpu, cuda or mps")
    if not available[device]:
        raise FxError(f"PyTorch finds no {device} device here; use `device=auto` or cpu")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Choose a numerics class: ``auto`` is fp16 on CUDA and MPS, and fp32 on CPUs.

    bf16 on a CPU costs a head 0.3 to 1.0 points of accuracy, so there it must be asked for.
    """
    if precision == "auto":
        return "fp32" if device.type == "cpu" else "fp16"
    if precision not in (*DTYPES, INT8):
        known = ", ".join((*DTYPES, INT8))
        raise FxError(f"unknown precision {precision!r}; choose auto, {known}")
    if precision == "fp16" and device.type == "cpu":
        raise FxError("fp16 is not computed on CPUs; use `precision=fp32` or bf16")
    if precision == INT8 and device.type != "cpu":
        raise FxError(f"int8 is computed on CPUs only; got device {device.type}; use auto or fp16")
    return precision


def training_precision(precision: str, device: torch.device) -> str:
    """Choose what to train in: ``auto`` is bf16 where the device multiplies it itself, else fp32.

    fp16 would need its gradients scaled; asked for, it becomes bf16.

    Raises
    ------
    FxError
        If int8 is asked for.
    """
    if precision == INT8:
        raise FxError(NO_INT8)
    if precision == "auto":
        return "bf16" if _multiplies_bf16(device) else "fp32"
    return "bf16" if precision == "fp16" else precision


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and bool(has)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let convolutions in fp32 be that: cuDNN would round what they multiply to 10 bits.

    Features of mobilenet_v2 differed by up to 0.35 % of the largest.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
