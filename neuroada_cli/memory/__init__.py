"""Where a training step's memory goes: measured by a tracker, or predicted without weights."""

from neuroada_cli.memory.prediction import predict, predict_step
from neuroada_cli.memory.processes import ProcessBytes, of_process, of_replica
from neuroada_cli.memory.tracker import (
    AllocatorBytes,
    Breakdown,
    StepBytes,
    StepMemory,
    TensorBytes,
    copy_structure,
    model_tensors,
    storage_bytes,
)

__all__ = [
    "AllocatorBytes",
    "Breakdown",
    "ProcessBytes",
    "StepBytes",
    "StepMemory",
    "TensorBytes",
    "copy_structure",
    "model_tensors",
    "of_process",
    "of_replica",
    "predict",
    "predict_step",
    "storage_bytes",
]
