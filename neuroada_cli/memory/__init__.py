"""Where a training step's memory goes: measured by a tracker, or predicted without weights."""

from neuroada_cli.memory.prediction import predict
from neuroada_cli.memory.tracker import (
    AllocatorBytes,
    Breakdown,
    StepMemory,
    TensorBytes,
    copy_structure,
    model_tensors,
    storage_bytes,
)

__all__ = [
    "AllocatorBytes",
    "Breakdown",
    "StepMemory",
    "TensorBytes",
    "copy_structure",
    "model_tensors",
    "predict",
    "storage_bytes",
]
