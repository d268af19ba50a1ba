"""A tiny workload, ready to be measured in no time."""

import torch

from benchmarks.prepared import Prepared
from benchmarks.workloads import Workload
from qbw_eval.engine.incremental import IncrementalEngine
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.networks.resnet import SHAPES

CPU = torch.device("cpu")


def tiny(**changes: object) -> Workload:
    settings = {"network": "ResNet-8", "shape": SHAPES["resnet8"], "width": 4, "pixels": 8, "images": 10}
    return Workload(**{**settings, "dataset_size": 100, "options": (2, 4, 8), "count": 5, **changes})  # type: ignore[arg-type]


def prepared(workload: Workload) -> Prepared:
    model, names = workload.model(), workload.table.names
    engines = {
        "reference": ReferenceEngine(model, names),
        "incremental": IncrementalEngine(model, names, workload.batch.inputs, 2**20),
    }
    return Prepared(
        workload=workload,
        device=CPU,
        model=model,
        batches=[workload.batch],
        engines=engines,
        auto="incremental",
        why="a test",
    )
