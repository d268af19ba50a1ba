"""The layout of the seed's checkpoints: a dict that holds the whole configuration of its training.

epoch                 int, 0-based
model_state_dict      name -> tensor, see `networks.multimodal_resnet`
optimizer_state_dict  whatever the optimizer keeps
val_acc, val_loss     validation results at the end of the epoch, often NumPy scalars
config                the YAML and the command line, see `seed_experiment`
quantization_method   the method's name in `config`

They lie in `<experiments>/<YYYYmmdd_HHMMSS_Model_variant>/models/{best_model,last_epoch,checkpoint_epoch_10}.pth`.

Learned scales stand there in the order of the configuration's options and with dimensions of size 1 behind: `alpha`
(PACT, (options or 1, 1, 1, 1)), `quantize_{w,a}.step_size` (LSQ and LSQ+) and `.zp` (LSQ+). Stored values are used as
they are stored, whatever the seed's own flags (`initialized`) say of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from qbw_eval.checkpoints.native import Checkpoint, accuracy_in, epoch_in, state_in
from qbw_eval.checkpoints.safe_load import CheckpointError, LoadedFile
from qbw_eval.experiment import Experiment, WithoutNetwork
from qbw_eval.seed_experiment import SeedExperiment, is_seed_config, seed_experiment_from_mapping
from qbw_eval.settings.multimodal import MultimodalModel
from qbw_eval.settings.quantization import QuantizationSettings
from schemas.errors import UsageError

SCALES = (".alpha", ".quantize_w.step_size", ".quantize_w.zp", ".quantize_a.step_size", ".quantize_a.zp")
_BOOKKEEPING = (".initialized", ".init_count", ".running_min", ".running_max")
"""What later versions of the seed's LSQ keep beside their steps, and no result depends on."""


def is_seed(content: object) -> TypeGuard[Mapping[Any, Any]]:
    """Say whether what a torch file holds has the layout's keys, right or wrong as their values may be."""
    return (
        isinstance(content, Mapping)
        and isinstance(content.get("model_state_dict"), Mapping)
        and is_seed_config(content.get("config"))
    )


def seed_checkpoint(loaded: LoadedFile, path: Path, instead: Experiment | WithoutNetwork | None = None) -> Checkpoint:
    """Return the checkpoint in a file that was read and has this layout (`is_seed`), checked.

    Args:
        loaded: what the file holds.
        path: the file.
        instead: what to evaluate it on, instead of the data that it names.

    Raises:
        CheckpointError: a key is missing or wrong; says which.
        ExperimentError: its configuration makes no sense, or is that of another of the seed's networks.
        UsageError: `instead` says what the network is.
    """
    content = loaded.content
    assert is_seed(content)
    if isinstance(instead, Experiment):
        raise UsageError(
            f"{path}: a checkpoint of the seed's layout, which says itself what its network is; "
            "leave model, quantization, quantization_method and training out of the --config file"
        )
    method = content.get("quantization_method")
    config = {**content["config"], **({"quantization_method": method} if isinstance(method, str) else {})}
    seed = seed_experiment_from_mapping(config, experiment_name(path), f"{path}: config")
    state, experiment = _ours(state_in(content, "model_state_dict", path), seed, path)
    return Checkpoint(
        path=path,
        sha256=loaded.sha256,
        epoch=epoch_in(content, path, first=0),
        experiment=experiment if instead is None else instead.with_network_of(experiment),
        state=state,
        val_acc=accuracy_in(content),
    )


def experiment_name(path: Path) -> str:
    """Return the name of a checkpoint's experiment: that of its folder, or of the one around `models`.

    >>> experiment_name(Path("experiments/20251118_220531_ResNet_resnet18/models/best_model.pth"))
    '20251118_220531_ResNet_resnet18'
    """
    folder = path.absolute().parent
    return (folder.parent if folder.name == "models" else folder).name or "experiment"


def _ours(state: Mapping[str, Tensor], seed: SeedExperiment, path: Path) -> tuple[dict[str, Tensor], Experiment]:
    """Return the state dict and the experiment with what only the weights tell: width, and which scales are switchable.

    Scales come in the order of ascending options; where some are one for all options and others one for each, those are
    repeated.
    """
    model = seed.experiment.model
    assert isinstance(model, MultimodalModel)
    experiment = seed.experiment.model_copy(
        update={"model": model.model_copy(update={"width": _width(state, model, path)})}
    )
    kept = {name: tensor for name, tensor in state.items() if not name.endswith((*_BOOKKEEPING, ".alpha_common"))}
    for name, tensor in state.items():
        if name.endswith(".alpha_common"):  # one for all options, from a time when that had a name of its own
            kept.setdefault(name.removesuffix("_common"), tensor)
    method = experiment.method
    if method is None:
        return kept, experiment
    signed_weights = any(name.endswith(".quantize_w.initialized") for name in state)
    if method.weight_quantization == "lsqplus" and signed_weights:
        # The seed's later LSQ+ quantizes weights as LSQ does, and counts its zero point the other way.
        method = method.model_copy(update={"weight_quantization": "lsq"})
        kept = {name: tensor for name, tensor in kept.items() if not name.endswith(".quantize_w.zp")}
    scales = {name: tensor.flatten() for name, tensor in kept.items() if name.endswith(SCALES)}
    count = len(seed.options)
    for name, values in scales.items():
        if len(values) not in (1, count):
            raise CheckpointError(
                f"{path}: model_state_dict[{name!r:.200}]: expected 1 value, or {count} for the options "
                f"{list(seed.options)}, found {len(values)}; was it saved with other bitwidth_options?"
            )
    switchable = any(len(values) > 1 for values in scales.values())
    ascending = torch.tensor(sorted(range(count), key=lambda position: seed.options[position]))
    for name, values in scales.items():
        ordered = values[ascending] if len(values) == count else values
        ordered = ordered.expand(count).clone() if switchable and len(values) == 1 else ordered
        kept[name] = -ordered if name.endswith(".zp") and _is_later(name, state) else ordered
    method = method.model_copy(update={"switchable_clipping": switchable})
    quantization = QuantizationSettings.model_validate({"enable": True, str(experiment.method_name): method})
    return kept, experiment.model_copy(update={"quantization": quantization})


def _is_later(name: str, state: Mapping[str, Tensor]) -> bool:
    """Say whether a zero point is of the seed's later LSQ+, which computes `(clamp(round(x/s - z), 0, n) + z) * s`."""
    return f"{name.removesuffix('.zp')}.initialized" in state


def _width(state: Mapping[str, Tensor], model: MultimodalModel, path: Path) -> int:
    """Return the channels that the first backbone's first convolution makes."""
    location, modalities = next(iter(model.in_channels.items()))
    key = f"mod_loc_backbones.{location}.{next(iter(modalities))}.conv1.weight"
    shape = tuple(state[key].shape) if key in state else None
    if shape is None or len(shape) != 4 or not 1 <= shape[0] <= 1024:
        found = f"keys like {sorted(state)[:2]}" if shape is None else f"a tensor of shape {shape}"
        raise CheckpointError(
            f"{path}: expected model_state_dict[{key!r:.200}] of shape (1 to 1024, channels, 7, 7), found {found}; "
            "was it saved from the network that its config describes?"
        )
    return shape[0]
