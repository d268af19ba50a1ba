"""What is to be evaluated, under which name: everything that can change a result is in the hashes. Needs no torch.

What is not in them: the batch size, the device and the number of threads, which change at most the rounding of the last
place; and how many configurations were asked for, so that asking for more continues where fewer ended.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from qbw_eval.configurations import (
    PLAIN,
    SEEDED,
    VERSIONED_NAMES,
    BitwidthConfiguration,
    SamplerSettings,
    sample,
)
from qbw_eval.layer_table import LayerTable
from schemas.records import hash_of, record_id_of

_CHUNK_MACS = 200 * 10**9
"""Some seconds of work on a CPU: what an interruption may cost where the data are small."""

_SHARING_CHUNK, _LONGEST_CHUNK_MACS = 16, 10**14
"""Configurations of one chunk share a pass over the data and what they have in common: 16 do where that takes at most
some minutes (on two cores), whatever the seconds above say."""

_LARGEST_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Seeded configurations of one network on one data split; equal for every checkpoint of a run.

    Attributes:
        sampler: name without version.
        seed: of the sampler.
        options: the bitwidths drawn from, ascending.
        network: plain JSON that says how the network computes: its settings and its quantizers. A checkpoint's bytes
            fix its weights, but the user may say with --config what is to be made of them.
        table: the network's quantized layers.
        data_id: fingerprint of the preprocessed data.
        num_samples: how many samples it has.
        numerics: the engine's.
        count: how many configurations were asked for; None for all that the sampler has.
        settings: what else the sampler was told.
        unquantized_weight_bytes: what the network keeps beside its quantized weights; None where nobody counted. It
            follows from the network, so it is in no hash.
        repeat: 0, or which of the repetitions asked for with --no-resume this is.
    """

    sampler: str
    seed: int
    options: tuple[int, ...]
    network: Mapping[str, object]
    table: LayerTable
    data_id: str
    num_samples: int
    numerics: str
    count: int | None
    settings: SamplerSettings = PLAIN
    unquantized_weight_bytes: int | None = None
    repeat: int = 0

    @property
    def versioned_sampler(self) -> str:
        """The sampler's name with its version, as rows call it."""
        return VERSIONED_NAMES[self.sampler]

    @cached_property
    def _facts(self) -> dict[str, object]:
        return {
            "sampler": self.versioned_sampler,
            "seed": self.seed if self.sampler in SEEDED else 0,
            "options": list(self.options),
            "model_id": self.table.model_id,
            "data_id": self.data_id,
            "network_id": self.network_id,
            "repeat": self.repeat,
            # Only where something is told: rows of iid and uniform were named before there was anything to tell.
            **({"sampler_settings": self.sampler_facts} if self.sampler_facts else {}),
        }

    @property
    def sampler_facts(self) -> dict[str, object]:
        """What the sampler was told besides its seed, as plain JSON."""
        return self.settings.facts(self.sampler, self.options)

    @cached_property
    def network_id(self) -> str:
        """The hash of how the network computes; results of two that differ must not be averaged."""
        return hash_of({"network": dict(self.network), "numerics": self.numerics})

    @cached_property
    def plan_id(self) -> str:
        """The hash that names this plan."""
        return hash_of(self._facts)

    @cached_property
    def configurations(self) -> list[BitwidthConfiguration]:
        """The configurations, at most `count` of them (fewer where no more exist)."""
        return sample(self.sampler, self.table, self.options, self.count, self.seed, self.settings)

    @property
    def reference(self) -> BitwidthConfiguration:
        """Every layer at the largest option: what `agreement` is measured against."""
        return BitwidthConfiguration(bitwidths=(self.options[-1],) * len(self.table), index=-1)

    def record_id(self, checkpoint_id: str, configuration: BitwidthConfiguration) -> str:
        """Return the hash of everything that could change the row of `configuration`; see `schemas.records`."""
        return record_id_of(checkpoint_id, self.plan_id, configuration.bitwidths, configuration.index)

    @property
    def chunk_size(self) -> int:
        """Configurations per part: some seconds of work on a CPU, from the work itself and not from a clock.

        Part names must be the same on every machine, or two evaluators could not see each other's work.
        """
        macs = max(1, self.num_samples * sum(layer.macs for layer in self.table.layers))
        sharing = min(_SHARING_CHUNK, _LONGEST_CHUNK_MACS // macs)
        return max(1, sharing, min(_LARGEST_CHUNK, _CHUNK_MACS // macs))

    def chunks(self, done: Set[int]) -> Iterator[list[BitwidthConfiguration]]:
        """Yield what is missing, in runs of consecutive indices that never cross a multiple of `chunk_size`."""
        yield from self.pieces(
            [configuration for configuration in self.configurations if configuration.index not in done]
        )

    def pieces(self, configurations: Sequence[BitwidthConfiguration]) -> Iterator[list[BitwidthConfiguration]]:
        """Yield configurations, whose indices ascend, in such runs."""
        # Consecutive indices have a constant distance to their position in the list.
        for _, run in groupby(
            enumerate(configurations), key=lambda item: (item[1].index // self.chunk_size, item[1].index - item[0])
        ):
            yield [configuration for _, configuration in run]
