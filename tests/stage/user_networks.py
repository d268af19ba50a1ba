"""Somebody's own code: what is in their folder, and a plain loop over their own network."""

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

NETS = '''\
import numpy
import torch
import torch.nn.functional as F
from torch import nn

from .rounding import levels


class Conv(nn.Conv2d):
    """DoReFa, in their own words."""

    bitwidth_options = [2, 4, 8]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.curr_bitwidth = 8

    def weight_bits(self):
        return self.curr_bitwidth

    def activation_bits(self):
        return self.curr_bitwidth

    def forward(self, x):
        n = levels(self.activation_bits())
        x = torch.round(x.clamp(0, 1) * n) / n
        w = torch.tanh(self.weight)
        w = w / (2 * w.abs().max()) + 0.5
        n = levels(self.weight_bits())
        return F.conv2d(x, 2 * torch.round(w * n) / n - 1, self.bias, self.stride, self.padding)


class TwoBits(Conv):
    """The same, its bits under two other names."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        del self.curr_bitwidth
        self.wbit = self.abit = 8

    def weight_bits(self):
        return self.wbit

    def activation_bits(self):
        return self.abit


class Prepared(Conv):
    """The same, but it runs at what was prepared for its bits."""

    prepared = 8

    def weight_bits(self):
        return self.prepared

    activation_bits = weight_bits


class Powers(nn.Conv2d):
    """A quantizer nobody has heard of: powers of two."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.curr_bitwidth = 8

    def forward(self, x):
        smallest = -(2.0 ** (self.curr_bitwidth - 1))
        w = self.weight.sign() * 2 ** torch.round(self.weight.abs().log2()).clamp(min=smallest)
        return F.conv2d(x, w, self.bias, self.stride, self.padding)


def prepare(layer, bits):
    layer.prepared = layer.curr_bitwidth = bits


def forget(layer, bits):
    pass


def refuse(layer, bits):
    if bits == 4:
        raise ValueError(f"{bits} bits are\\nnot for me")
    layer.curr_bitwidth = bits


class Net(nn.Module):
    def __init__(self, kind, width, classes):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.first = kind(width, width, 3, padding=1)
        self.second = kind(width, 8, 3, stride=2)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.fc(x[:, :, 1, 1])


class Mixed(Net):
    """One layer with its bits under two names, one with the usual one."""

    def __init__(self, kind, width, classes):
        super().__init__(kind, width, classes)
        self.first = TwoBits(width, width, 3, padding=1)


class Looks(Net):
    """Python that looks at values: no graph shows it, and no tensor without values can go through it."""

    def forward(self, x):
        return super().forward(x * 2 if x.mean() > 0 else x)


class Sides(nn.Module):
    """Takes a dict of dicts."""

    def __init__(self):
        super().__init__()
        self.left, self.right = Net(Conv, 3, 4), Net(Conv, 2, 4)

    def forward(self, x):
        return self.left(x["left"]["image"]) - self.right(x["right"]["image"])


class Prints(Net):
    def forward(self, x):
        print("hello from the forward")
        return super().forward(x)


class Returns(Net):
    def __init__(self, how):
        super().__init__(Conv, 2, 10)
        self.how = how

    def forward(self, x):
        y = super().forward(x)
        if self.how == "tuple":
            return y, y
        if self.how == "dict":
            return {"logits": y}
        if self.how == "squeezed":
            return y.squeeze()
        if self.how == "classes":
            return y.argmax(1)
        if self.how == "fails later" and len(x) > 2:
            raise RuntimeError("not so many")
        return y


class Ways(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Module(), nn.Module()
        self.left.blocks, self.right.blocks = (nn.Sequential(*(Conv(1, 1, 1) for _ in range(9))) for _ in range(2))

    def forward(self, x):
        return self.left.blocks(x) + self.right.blocks(x)


def deep():
    network = nn.Sequential()
    network.add_module("a_long_name_of_a_part", Ways())
    network.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    return network


def make(width=4, classes=10, kind="Conv", net="Net"):
    return globals()[net](globals()[kind], width, classes)


def pairs(split, path):
    """The data for it, batches of a dict of dicts and labels."""
    assert split == "validation"
    file = numpy.load(path)
    for start in range(0, len(file["labels"]), 4):
        images = torch.from_numpy(file["inputs"][start : start + 4])
        inputs = {"right": {"image": images}, "left": {"image": images.flip(3)}}
        yield inputs, torch.from_numpy(file["labels"][start : start + 4] % 4)


def sides():
    return Sides()


def returns(how):
    return Returns(how)


def plain():
    return nn.Linear(3, 3)


def nothing():
    return {"no": "network"}


def broken(width):
    raise KeyError("width")


def prints(**arguments):
    print("hello from the factory")
    return Prints(Conv, **arguments)


def wrapped(**arguments):
    return nn.DataParallel(make(**arguments))
'''


def write_package(folder: Path, marker: Path | None = None) -> None:
    """Write their package `theirs`; with `marker`, importing it leaves a file there."""
    (folder / "theirs").mkdir()
    (folder / "theirs" / "__init__.py").write_text("")
    touch = "" if marker is None else f"open({str(marker)!r}, 'w').close()\n"
    (folder / "theirs" / "nets.py").write_text(NETS)
    (folder / "theirs" / "rounding.py").write_text(f"{touch}def levels(bits):\n    return 2**bits - 1\n")


def their_module(folder: Path) -> ModuleType:
    """Return their `nets`, imported apart from what the code under test imports."""
    for name, path in (("apart", "__init__"), ("apart.rounding", "rounding"), ("apart.nets", "nets")):
        found = importlib.util.spec_from_file_location(
            name, folder / "theirs" / f"{path}.py", submodule_search_locations=[] if name == "apart" else None
        )
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)
    return module


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network weights, and batch norms statistics, that it was not made with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                positive = "running_var" in name or "alpha" in name
                tensor.copy_(drawn + 0.5 if positive else (2 * drawn - 1) * (0.1 if "bias" in name else 1))
    return network.eval()


def plain_loop(
    network: nn.Module, inputs: Any, configurations: Iterable[dict[str, int]], names: tuple[str, ...]
) -> list[Tensor]:
    """Return the classes that their own network predicts at each configuration, layer name -> bits."""
    predicted = []
    for configuration in configurations:
        for layer, bits in configuration.items():
            for name in names:
                setattr(network.get_submodule(layer), name, int(bits))  # not an int8, which overflows
        with torch.no_grad():
            predicted.append(network(inputs).argmax(1))
    return predicted
