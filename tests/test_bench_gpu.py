"""What `make bench DEVICE=cuda` measures, on the CPU: tiny networks, and Triton's interpreter in place of a GPU."""

import contextlib
import itertools
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from bench_workloads import CPU, prepared, tiny
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import benchmarks.bench
import benchmarks.gpu
from benchmarks.ceilings import Ceilings, measured_ceilings
from benchmarks.devices import Differences, class_differences, varied
from benchmarks.engines import Bounds, Effort, _queued, engine_figures
from benchmarks.experts_loop import ExpertsLoop
from benchmarks.figures import Figure
from benchmarks.gpu import _integers_on, effort_on_gpu, gpu_figures, tell_failure
from benchmarks.kernels import Launch, describe, launches_of, share_figures
from benchmarks.prepared import Prepared, tf32
from benchmarks.timing import Timed, interleaved, typical_seconds
from benchmarks.workloads import GPU_WORKLOADS, Workload
from qbw_eval.commands.device import allow_tf32
from qbw_eval.configurations import sample
from qbw_eval.data.batches import Batch
from qbw_eval.engine.convolutions import Arithmetic, LayerConvolution, SplitOf
from qbw_eval.engine.integer import DeclinedError, IntegerEngine
from qbw_eval.engine.onednn import OnednnArithmetic
from qbw_eval.engine.packing import why_not_here
from qbw_eval.engine.passes import PLAIN
from qbw_eval.engine.reference import ReferenceEngine
from qbw_eval.networks.resnet import Shape
from qbw_eval.quantization.bitwidths import get_bitwidths
from qbw_eval.quantization.layers import QuantConv2d, Quantizers, QuantLinear
from schemas.errors import exit_code_of

pytest.importorskip("triton", reason="Triton is not installed: pip install '.[gpu]'")

from qbw_eval.engine.triton_arithmetic import TritonArithmetic

REPOSITORY = Path(__file__).parent.parent
ONEDNN_HERE = pytest.mark.skipif(why_not_here() is not None, reason=f"no oneDNN to compare with: {why_not_here()}")
MUCH = 10**8


def small(**changes: object) -> Workload:
    """Return a workload of five quantized layers; there is one of each kind."""
    shape = Shape(blocks=(1, 1), stem="cifar")
    return tiny(**{"shape": shape, "images": 2, "count": 2, "options": (2, 8), "pixels": 4, **changes})


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet() -> Iterator[None]:
    """From the ninth network on, torch would compile no forward of one class, and run it as it is."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_workloads_are_those_that_bounds_are_for():
    labels = [workload.label for workload in GPU_WORKLOADS]
    assert labels == ["ResNet-18, 1024 x 3x32x32, {2,4,8}", "ResNet-50, 256 x 3x224x224, {2,4,8}"]
    assert [workload.count for workload in GPU_WORKLOADS] == [64, 64]


# --- the expert's loop ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["dorefa", "pact"])
def test_in_float32_the_experts_loop_has_the_networks_logits_and_compiles_once(activation: str):
    workload = small(images=10, options=(2, 4, 8))
    model, names = workload.model(), workload.table.names
    if activation == "pact":
        torch.manual_seed(1)
        for layer in model.modules():
            if isinstance(layer, QuantConv2d):
                layer.quantizers = Quantizers(options=(2, 4, 8), activation="pact", switchable=True)
                layer.alpha = nn.Parameter(torch.rand(3) + 0.5)
    configurations = [*workload.random_configurations(8), *workload.uniform_configurations]
    expected = dict(ReferenceEngine(model, names).logits(workload.batch.inputs, configurations))
    bits, compiler = get_bitwidths(model), CompileCounter()
    loop = ExpertsLoop(model, names, compiler=compiler, dtype=torch.float32)
    images = loop.images_for(workload.batch.inputs)
    for _ in range(2):  # weights are made, then taken from what is kept
        for position, configuration in enumerate(configurations):
            found = loop.logits(images, configuration)
            torch.testing.assert_close(found, expected[position].detach(), rtol=1e-5, atol=1e-5)
    assert compiler.frame_count == 1
    assert get_bitwidths(model) == bits


def test_in_bfloat16_it_has_them_as_nearly_as_8_significant_bits_allow():
    workload = tiny()
    model, names = workload.model(), workload.table.names
    configuration = workload.uniform_configurations[-1]  # at few bits one tie moves an activation far
    ((_, expected),) = ReferenceEngine(model, names).logits(workload.batch.inputs, [configuration])
    loop = ExpertsLoop(model, names, compiler="eager")
    found = loop.logits(loop.images_for(workload.batch.inputs), configuration)
    assert found.dtype == torch.bfloat16
    distance = float((found.float() - expected).abs().max().detach())
    assert 0 < distance < 0.03 * float(expected.abs().max().detach())


def test_it_counts_what_it_gets_right():
    workload = small(images=30)
    loop = ExpertsLoop(workload.model(), workload.table.names, compiler="eager")
    images, labels = loop.images_for(workload.batch.inputs), workload.batch.labels
    configurations = workload.random_configurations()
    halves = [Batch(images[:15], labels[:15]), Batch(images[15:], labels[15:])]
    found = loop.run(halves, configurations)
    expected = [int((loop.logits(images, each).argmax(1) == labels).sum()) for each in configurations]
    assert found == expected
    assert 0 < sum(found) < 30 * len(configurations)


# --- TensorFloat-32 -------------------------------------------------------------------------------------------------


def precisions() -> tuple[str, str]:
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision  # type: ignore[attr-defined]


def precision_of_cpus() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]


@pytest.mark.parametrize("before", [False, True])
def test_tf32_is_allowed_for_a_while_whatever_happens_and_compiled_forwards_run(before: bool):
    found, of_cpus = precisions(), precision_of_cpus()
    try:
        allow_tf32(before)
        with contextlib.suppress(ZeroDivisionError), tf32():
            assert precisions() == ("tf32", "tf32")
            assert torch.get_float32_matmul_precision() == "high"  # which compilers of torch 2.11 ask for
            assert torch.compile(lambda x: x @ x, backend="aot_eager")(torch.eye(2)).equal(torch.eye(2))
            precisions()[1 // 0]
        assert precisions() == (("tf32",) * 2 if before else ("ieee",) * 2)
        assert precision_of_cpus() == of_cpus
    finally:
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = found  # type: ignore[attr-defined]


# --- what is timed, and what fails ----------------------------------------------------------------------------------


def test_what_fails_is_told_and_keeps_nothing_else_from_being_timed():
    told: list[str] = []
    runs = itertools.count()

    def fails(after: int) -> Callable[[], object]:
        done = itertools.count()

        def action() -> None:
            if next(done) >= after:
                raise MemoryError("no room")

        return action

    timed = {
        "at once": Timed(action=fails(0)),
        "well": Timed(action=lambda: next(runs)),
        "in the second round": Timed(action=fails(2)),
    }
    times = interleaved(timed, 3, failed=lambda name, error: told.append(f"{name}: {error}"))
    assert {name: len(values) for name, values in times.items()} == {"well": 3}
    assert next(runs) == 4
    assert told == ["at once: no room", "in the second round: no room"]
    with pytest.raises(MemoryError, match="no room"):
        interleaved(timed, 3)


def test_a_failure_is_a_sentence_with_its_place_in_our_code(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="expected finite values") as caught:
        Figure(figure="a", values=[], unit="s")
    tell_failure("a", caught.value)
    reason = "figure 'a': expected finite values, at least one, found []"
    assert capsys.readouterr().err.startswith(f"bench: no figures of a here: {reason} (ValueError, figures.py:")
    assert caught.value.__traceback__ is None
    tell_failure("b", RuntimeError("first\nsecond"))
    tell_failure("c", MemoryError())
    assert capsys.readouterr().err.splitlines() == [
        "bench: no figures of b here: first (RuntimeError)",
        "bench: no figures of c here: no word why (MemoryError)",
    ]


def test_something_short_is_done_a_few_times():
    runs = itertools.count()
    assert 0 <= typical_seconds(lambda: next(runs), CPU) < 1
    assert next(runs) == 4


def fast_arithmetic(*_device: object) -> Arithmetic:
    return OnednnArithmetic(MUCH, PLAIN) if why_not_here() is None else TritonArithmetic(CPU, MUCH)


def test_what_is_queued_is_waited_for_once_and_divided_by_how_often_it_ran():
    runs = itertools.count()
    timed = _queued(lambda: next(runs))
    timed.action()
    assert next(runs) == timed.units == 8


WAYS = ["people's loop", "plain fp32 forward", "compiled TF32 forward", "compiled bf16 fake quantization"]


def ready(workload: Workload, **changes: object) -> Prepared:
    """Return a workload with integers by whatever convolves them fast here, and a compiler that compiles nothing."""
    made = prepared(workload)
    names, inputs = workload.table.names, workload.batch.inputs
    integer = IntegerEngine(made.model, names, inputs, workload.options, MUCH, arithmetic=fast_arithmetic())
    return replace(made, **{"engines": {**made.engines, "integer": integer}, "compiler": "eager", **changes})  # type: ignore[arg-type]


BOUNDS = Bounds(loop=10, tf32=2, expert=1.5)


def test_what_auto_takes_and_integers_are_held_to_the_same_bounds():
    workload = small()
    effort = Effort(rounds=1, gpu_ways=True, judged=("integer",), auto_sweep=False)
    figures = {figure.figure: figure for figure in engine_figures(ready(workload), effort, BOUNDS)}
    label = f"{workload.label}, 2 random configurations"
    bounds = [10, None, 2, 1.5]
    for below in ("auto", "integer"):
        for way, bound in zip(WAYS, bounds, strict=True):
            assert figures[f"{way} / {below}, {label}"].at_least == bound
    for name in (*WAYS, "reference"):
        assert figures[f"{name}, {workload.label}, any number of configurations"].unit == "ms/configuration"
    assert f"auto, {label}; takes incremental" in figures
    assert f"integer, {label}" in figures
    assert f"people's loop / incremental, {label}" in figures


def test_what_cannot_be_compiled_has_no_figures_and_the_rest_has(capsys: pytest.CaptureFixture[str]):
    workload = small()
    effort = replace(effort_on_gpu(Effort(rounds=1), None, quick=True), auto_sweep=False)

    def compiler(*_given: object) -> object:
        raise RuntimeError("nothing compiles here")

    made = ready(workload, compiler=compiler)
    figures = [figure.figure for figure in engine_figures(made, effort, BOUNDS)]
    label = f"{workload.label}, 2 random configurations"
    assert f"people's loop / integer, {label}" in figures
    assert not any(name.startswith("compiled") for name in figures)
    told = capsys.readouterr().err
    assert "bench: no compiled" in told  # the one without quantization, which is tried beforehand
    for way in WAYS[2:]:
        assert f"bench: no figures of {way} here: " in told


def test_on_a_gpu_rounds_are_bounded_and_failures_told():
    effort = effort_on_gpu(Effort(rounds=7), None, quick=False)
    assert (effort.rounds, effort.limit_s, effort.gpu_ways, effort.judged) == (7, 75, True, ("integer",))
    assert effort_on_gpu(effort, None, quick=True).limit_s == 25
    assert effort_on_gpu(effort, 3.0, quick=True).limit_s == 3
    assert effort.failed is tell_failure


# --- the card's ceilings, and what convolutions reach of them -------------------------------------------------------


def test_ceilings_are_measured():
    ceilings = measured_ceilings(CPU, sizes=(32, 64), copied_bytes=2**16)
    assert all(0 < value < math.inf for value in (ceilings.int8, ceilings.bf16, ceilings.copied))
    assert [figure.unit for figure in ceilings.figures()] == ["TOP/s", "TFLOP/s", "GB/s"]


CEILINGS = Ceilings(int8=1000e12, bf16=500e12, copied=2e12)


def test_shares_are_all_operations_over_all_time():
    launches = [
        Launch(layer="a", shape="x", operations=3 * 10**11, moved=10**8, bare=0.001, whole=0.002),
        Launch(layer="b", shape="y", operations=10**11, moved=4 * 10**8, bare=0.001, whole=0.003),
    ]
    figures = share_figures(launches, CEILINGS, "N", at_least=35)
    assert [(figure.figure, figure.at_least) for figure in figures] == [
        ("convolutions, share of the int8 matrix ceiling, N", 35),
        ("convolutions, share of the int8 matrix ceiling, the worst layer, N", None),
        ("convolutions with sums and float32 results, share of the int8 matrix ceiling, N", None),
        ("convolutions, share of the int8 matrix ceiling that memory allows, N", None),
    ]
    # 4e11 operations in 2 ms are 200 TOP/s; b's 1e11 in 1 ms 100; in 5 ms 80; and at best a takes 0.3 ms, b 0.2 ms.
    assert [figure.value for figure in figures] == pytest.approx([20, 10, 8, 80])
    assert describe(launches[1], CEILINGS) == (
        "b: y: 1000.0 us, 3000.0 us in the network: 10.0% of the int8 ceiling, memory allows 50.0%"
    )


def test_every_convolution_of_a_forward_pass_is_timed_and_gives_what_it_gives():
    workload = small(images=1)
    model = workload.model()
    times = itertools.count(1)
    results: list[Tensor] = []

    def clock(action: Callable[[], object]) -> float:
        result = action()
        assert isinstance(result, Tensor)
        results.append(result)
        return float(next(times))

    table = workload.table
    launches = launches_of(
        model, table.names, workload.batch.inputs, workload.options, TritonArithmetic(CPU, MUCH), clock
    )
    assert sorted(launch.layer for launch in launches) == sorted(table.names)
    macs = {layer.layer_name: layer.macs for layer in table.layers}
    assert {launch.layer: launch.operations for launch in launches} == {
        name: 2 * workload.images * count for name, count in macs.items()
    }
    assert [launch.bare for launch in launches] == list(range(1, 2 * len(launches), 2))
    assert [launch.whole for launch in launches] == list(range(2, 2 * len(launches) + 1, 2))
    assert {result.dtype for result in results[::2]} == {torch.uint8}
    assert {result.dtype for result in results[1::2]} == {torch.uint8, torch.float32}
    (first,) = (launch for launch in launches if launch.layer == "layer1.0.conv1")
    assert first.shape == "1x4x4x4 * 4x4x3x3 = 1x4x4x4"
    assert first.moved == 4 * 16 + 4 * 4 * 9 + 4 * 16


# --- classes on two devices -----------------------------------------------------------------------------------------


class Wrong(TritonArithmetic):
    """Its 1x1 convolutions give nothing."""

    def of_layer(self, layer: QuantConv2d | QuantLinear, split_of: SplitOf) -> LayerConvolution:  # type: ignore[override]
        right = super().of_layer(layer, split_of)
        if layer.weight.shape[2:] != (1, 1):
            return right
        return lambda *given, **named: torch.zeros_like(right(*given, **named))


def two_layers() -> nn.Module:
    torch.manual_seed(0)
    quantizers = Quantizers(options=(2, 8))
    network = nn.Sequential(
        *(QuantConv2d(3, 6, 3, quantizers=quantizers), nn.ReLU(), QuantConv2d(6, 6, 1, quantizers=quantizers)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)),
    )
    return network.eval()


@ONEDNN_HERE
def test_classes_that_differ_are_counted_configuration_by_configuration():
    model, names, options = two_layers(), ["0", "2"], (2, 8)
    images = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 2
    configurations = sample("iid", 2, options, 3, seed=0)
    cpu = IntegerEngine(model, names, images, options, MUCH, PLAIN)
    right, wrong = (
        IntegerEngine(model, names, images, options, MUCH, arithmetic=arithmetic)
        for arithmetic in (TritonArithmetic(CPU, MUCH), Wrong(CPU, MUCH))
    )
    equal = class_differences(cpu, right, images, configurations, CPU, batch_size=4)
    assert equal == Differences(samples=6, of_configuration=[0, 0, 0])
    expected = []
    with torch.no_grad():
        theirs = dict(wrong.logits(images, configurations))
        for position, logits in sorted(dict(cpu.logits(images, configurations)).items()):
            expected.append(sum(int(a.argmax() != b.argmax()) for a, b in zip(logits, theirs[position], strict=True)))
    found = class_differences(cpu, wrong, images, configurations, CPU, batch_size=4)
    assert found == Differences(samples=6, of_configuration=expected)
    assert sum(expected) > 0
    figure = found.figure("N", at_most=1)
    assert figure.value == pytest.approx(100_000 * sum(expected) / 18)
    assert (figure.figure, figure.is_met) == ("classes that differ between CPU and GPU, N", False)


@ONEDNN_HERE
def test_integers_are_those_of_a_run_or_there_are_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qbw_eval.engine.choose.fastest_passes", lambda: PLAIN)
    model, images = two_layers(), torch.rand(2, 3, 6, 6)
    assert isinstance(_integers_on(model, ["0", "2"], images, (2, 8)), IntegerEngine)
    with torch.no_grad():
        model[2].weight.fill_(torch.nan)
    with pytest.raises(DeclinedError, match="no integers: some of its logits are NaN"):
        _integers_on(model, ["0", "2"], images, (2, 8))


def test_varied_images_are_shifted_by_a_pixel_at_most(monkeypatch: pytest.MonkeyPatch):
    images = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    noisy = varied(images, 200, seed=1)
    monkeypatch.setattr("benchmarks.devices._NOISE", 0.0)
    found = varied(images, 200, seed=1)
    assert 0 < float((noisy - found).abs().max()) < 1
    rows, columns = torch.arange(4), torch.arange(5)
    shifts = [
        image[:, (rows + down).clamp(0, 3)][:, :, (columns + right).clamp(0, 4)]
        for image in images
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    ]
    seen = {next(number for number, shift in enumerate(shifts) if shift.equal(one)) for one in found}
    assert len(seen) == len(shifts)
    assert varied(images, 200, seed=1).equal(found)
    assert not varied(images, 200, seed=2).equal(found)


# --- the whole of it ------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_something_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    first, last = small(pixels=4), small(network="ResNet-50")

    def prepare(workload: Workload, _device: torch.device) -> Prepared:
        if workload is first:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nand more words")
        return ready(workload)

    monkeypatch.setattr(benchmarks.gpu, "prepare", prepare)
    monkeypatch.setattr(benchmarks.gpu, "_triton_on", fast_arithmetic)
    monkeypatch.setattr(benchmarks.gpu, "train_demo", lambda _folder: Path("no such file"))
    monkeypatch.setattr(benchmarks.gpu, "typical_seconds", lambda action, _device: float(action() is not None))
    effort = effort_on_gpu(Effort(rounds=1, auto_sweep=False), 0.0, quick=False)
    groups = list(gpu_figures(CPU, effort, quick=False, workloads=[first, last], ceilings=lambda _device: CEILINGS))
    names = [[figure.figure for figure in figures] for figures in groups]
    assert [len(group) > 0 for group in names] == [True, True, False]  # engines, convolutions, classes
    assert f"people's loop / integer, {last.label}, 2 random configurations" in names[0]
    assert names[1][0] == "int8 matrix ceiling, the best of several large squares"
    assert names[1][3] == f"convolutions, share of the int8 matrix ceiling, {last.label}"
    told = capsys.readouterr().err
    assert f"bench: no figures of {first.label} here: CUDA out of memory. Tried to allocate 1 GiB (OutOfMemory" in told
    assert f"bench: {last.label}: auto takes incremental: a test\n" in told
    assert "of the int8 ceiling, memory allows" in told
    assert "bench: no figures of classes here: " in told


def test_quick_times_the_first_workload_and_the_convolutions_of_the_last(monkeypatch: pytest.MonkeyPatch):
    workloads = [small(network=name) for name in ("A", "B", "C")]
    asked: list[str] = []

    def figures_of(kind: str) -> Callable[..., list[Figure]]:
        def figures(made: Workload, *_rest: object) -> list[Figure]:
            return [Figure(figure=f"{kind} of {made.network}", values=[1], unit="x")]

        return figures

    def prepare(workload: Workload, _device: torch.device) -> Workload:
        asked.append(workload.network)
        return workload

    for attribute in ("auto", "why"):
        monkeypatch.setattr(Workload, attribute, "", raising=False)
    monkeypatch.setattr(benchmarks.gpu, "prepare", prepare)
    kinds = {"engine_figures": "engines", "_convolutions": "convolutions", "_memory": "memory", "_measurements": "m"}
    for name, kind in kinds.items():
        monkeypatch.setattr(benchmarks.gpu, name, figures_of(kind))
    monkeypatch.setattr(benchmarks.gpu, "many_classes_figures", lambda *_given: [])
    classes = [Figure(figure="classes", values=[1], unit="x")]
    monkeypatch.setattr(benchmarks.gpu, "_classes", lambda _device: classes)

    def named(*, quick: bool, only: Sequence[str] = ("x",)) -> list[str]:
        groups = gpu_figures(CPU, Effort(rounds=1), quick=quick, only=only, workloads=workloads)
        return [figure.figure for group in groups for figure in group]

    assert named(quick=True) == ["engines of A", "convolutions of C"]
    assert asked == ["A", "C"]
    engines = ["engines of A", "engines of B", "engines of C"]
    everything = [*engines, "convolutions of C", "memory of A", "m of A"]
    assert named(quick=False) == everything
    assert named(quick=False, only=["B,"]) == ["engines of B"]
    assert named(quick=False, only=["classes"]) == ["classes"]
    assert named(quick=True, only=[]) == ["engines of A", "convolutions of C", "classes"]


def test_a_gpus_run_measures_nothing_else(monkeypatch: pytest.MonkeyPatch):
    figures = [Figure(figure="a", values=[1], unit="x")]
    monkeypatch.setattr(benchmarks.bench, "gpu_figures", lambda *_given, **_named: iter([figures]))
    assert list(benchmarks.bench.measure_all(torch.device("cuda"), Effort(rounds=1), quick=False)) == [figures]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_sentence_says_so(capsys: pytest.CaptureFixture[str]):
    assert exit_code_of("bench", lambda: benchmarks.bench.main(["--device", "cuda"], standalone_mode=False)) == 1
    expected = "torch finds no CUDA GPU on this machine; use --device auto or cpu"
    assert capsys.readouterr().err == f"bench: error: --device: 'cuda' asked for, but {expected}\n"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")  # compilers have much to say, and it is not about what they make
def test_on_a_gpu_nothing_of_it_fails(capsys: pytest.CaptureFixture[str]):
    """All but the demo's network, which takes long to train."""
    device = torch.device("cuda")
    workloads = [small(images=64, options=(2, 4, 8)), small(network="ResNet-50", images=64, options=(2, 4, 8))]
    ceilings = partial(measured_ceilings, sizes=(256, 512), copied_bytes=2**20)
    effort = effort_on_gpu(Effort(rounds=1), 0.0, quick=False)
    only = [workload.network for workload in workloads]
    groups = list(gpu_figures(device, effort, quick=False, only=only, workloads=workloads, ceilings=ceilings))
    names = [figure.figure for figures in groups for figure in figures]
    told = capsys.readouterr().err
    assert "no figures of" not in told, told
    for way, below, workload in itertools.product(WAYS, ("auto", "integer"), workloads):
        assert f"{way} / {below}, {workload.label}, 2 random configurations" in names
    model, images = two_layers().to(device), torch.rand(6, 3, 6, 6)
    there = _integers_on(model, ["0", "2"], images.to(device), (2, 8))
    here = IntegerEngine(two_layers(), ["0", "2"], images, (2, 8), MUCH, PLAIN)
    configurations = sample("iid", 2, (2, 8), 3, seed=0)
    assert class_differences(here, there, images, configurations, device).of_configuration == [0, 0, 0]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_bench_passes_the_device_on():
    words = ["make", "-n", "-o", ".venv/.test-ready", "bench", "DEVICE=cuda", "QUICK=1"]
    run = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "-m benchmarks.bench --device 'cuda'  --quick" in run.stdout
