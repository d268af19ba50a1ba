"""A workload ready to be timed: the network's engines, and the ways that people would go without QBW."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.experts_loop import ExpertsLoop
from benchmarks.peoples_loop import peoples_loop
from benchmarks.workloads import Workload
from qbw_eval.configurations import BitwidthConfiguration
from qbw_eval.data.batches import Batch
from qbw_eval.engine.choose import Engine, choose_engine
from qbw_eval.evaluate import measure
from qbw_eval.memory import MemoryBudget, free_memory
from qbw_eval.networks.resnet import ResNet

CACHE_BYTES = 2 * 1024**3
_PROBED_IMAGES = 2  # as in evaluate.py


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A workload's network and batch on a device, and its engines.

    Attributes:
        workload: what it is made from.
        device: where it runs.
        model: the quantized network.
        batches: one batch.
        engines: those that run here, by name.
        auto: the name of the one that `auto` takes.
        why: its reason.
        compiler: what torch.compile compiles with.
    """

    workload: Workload
    device: torch.device
    model: ResNet
    batches: Sequence[Batch]
    engines: dict[str, Engine]
    auto: str
    why: str
    compiler: str = "inductor"

    def measuring(self, engine: str, configurations: Sequence[BitwidthConfiguration]) -> Callable[[], object]:
        """Return what measures the configurations with an engine, as `qbw-eval run` does."""
        return lambda: measure(self.engines[engine], self.batches, configurations)

    def peoples_loop(self, configurations: Sequence[BitwidthConfiguration]) -> Callable[[], object]:
        """Return what measures them as people do today."""
        loader, names = self.workload.loader(), self.workload.table.names
        return lambda: peoples_loop(self.model, loader, names, configurations, self.device)

    def plain_forward(self) -> Callable[[], object]:
        """Return one float32 forward pass of the unquantized network."""
        return self._forward(self.workload.plain_model().to(self.device), torch.float32)

    @property
    def compiled_name(self) -> str:
        """What `compiled_forward` runs in."""
        return f"compiled {'bf16' if self._fast_dtype == torch.bfloat16 else 'fp32'} forward"

    def compiled_forward(self) -> Callable[[], object] | None:
        """Return the same through torch.compile, under bfloat16 autocast where the device has instructions for it.

        None, and a word on stderr, where torch.compile does not work.
        """
        forward = self._forward(self._compiled_model(), self._fast_dtype)
        try:
            forward()
        except Exception as error:  # whatever a compiler that is not there makes of it
            print(f"bench: no {self.compiled_name} here: {error!s:.200}", file=sys.stderr)
            return None
        return forward

    def tf32_forward(self) -> Callable[[], object]:
        """Return the same in float32 with TensorFloat-32's products, through torch.compile, in its first call."""
        forward = self._forward(self._compiled_model(), torch.float32)

        def in_tf32() -> None:
            with tf32():
                forward()

        return in_tf32

    def experts_loop(self, configurations: Sequence[BitwidthConfiguration]) -> Callable[[], object]:
        """Return what measures configurations as an expert would without QBW; compiled in its first call."""
        loop = ExpertsLoop(self.model, self.workload.table.names, compiler=self.compiler)
        batches = [Batch(loop.images_for(batch.inputs), batch.labels) for batch in self.batches]
        return lambda: loop.run(batches, configurations)

    def _compiled_model(self) -> nn.Module:
        compiled: nn.Module = torch.compile(  # type: ignore[assignment]  # a module again
            self.workload.plain_model().to(self.device), backend=self.compiler, dynamic=False
        )
        return compiled

    @property
    def _fast_dtype(self) -> torch.dtype:
        # Emulated bfloat16 is many times slower than float32: nobody would try it twice.
        has_bfloat16 = self.device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32

    def _forward(self, model: nn.Module, dtype: torch.dtype) -> Callable[[], object]:
        inputs = [batch.inputs.contiguous(memory_format=torch.channels_last) for batch in self.batches]

        def forward() -> None:
            autocast = nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype=dtype)
            with torch.inference_mode(), autocast:
                for batch in inputs:
                    model(batch)

        return forward


@contextmanager
def tf32() -> Iterator[None]:
    """Let CUDA compute float32 products in TensorFloat-32 for a while, then as before.

    Of products by the function for all of torch's backends: up to 2.12, compilers look at what only that sets as well,
    and fail where the two differ (pytorch/pytorch#166387).
    """
    backends = (torch.backends.cudnn.conv, torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]  # torch's hints lag behind
    before = [backend.fp32_precision for backend in backends]
    torch.set_float32_matmul_precision("high")
    backends[0].fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def allowed_activations(device: torch.device) -> int:
    """Return how many bytes of values live at once on a GPU, as `qbw-eval run` allows unless it is told otherwise."""
    return MemoryBudget(free_memory(device) // 4).activations


def prepare(workload: Workload, device: torch.device) -> Prepared:
    """Return a workload with every engine that runs on the device."""
    model = workload.model().to(device)
    batch = workload.batch_on(device)
    engines: dict[str, Engine] = {}

    def choose(name: str) -> tuple[Engine, str]:
        choice = choose_engine(
            name,
            model,
            workload.table.names,
            batch.inputs[:_PROBED_IMAGES],
            workload.options,
            cache_bytes=CACHE_BYTES,
            work=workload.work,
            activation_bytes=allowed_activations(device),
        )
        return choice.engine, choice.reason

    for name in ("reference", "incremental", "integer"):
        engine, reason = choose(name)
        if engine.name == name:
            engines[name] = engine
        else:
            print(f"bench: {workload.label}: no {name} engine here: {reason}", file=sys.stderr)
    auto, why = choose("auto")
    return Prepared(
        workload=workload,
        device=device,
        model=model,
        batches=[batch],
        engines=engines,
        auto=auto.name,
        why=why,
    )
