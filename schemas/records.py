"""The record: one evaluated bitwidth configuration of one checkpoint on one data split.

Invariants checked when a part is written and when it is read:
    0 <= correct <= num_samples, 0 < num_samples; accuracy == correct / num_samples; 1 <= bits <= 32 in every layer;
    0 <= top5_correct <= num_samples where it is not null.
Invariants of a whole dataset:
    len(bitwidths) is the number of quantized layers, in forward order of the layer table `model_id` names;
    record_id is unique, and is what `record_id_of` gives for the row.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from schemas.columns import Column, arrow_schema

KIND = "records"
SCHEMA_VERSION = (1, 1)
"""Major, minor. A reader refuses a newer major and reads what it knows of a newer minor.

1.1 added target, target_cost, relative_weight_bytes, unquantized_weight_bytes, kl_divergence, top5_correct,
correct_per_class and samples_per_class; rows from before have nulls there.
"""

_text, _time = pa.string(), pa.timestamp("us", tz="UTC")
_bits = pa.list_(
    pa.field("element", pa.int8())
)  # "element" is what Parquet calls it; any other name comes back changed
_counts = pa.list_(pa.field("element", pa.int64()))


def _identity(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> Column:
    return Column(name=name, type=kind, meaning=meaning, unit=unit, group="identity")


def _configuration(name: str, kind: pa.DataType, meaning: str, unit: str = "", label: str = "") -> Column:
    return Column(name=name, type=kind, meaning=meaning, unit=unit, label=label, group="configuration")


def _result(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> Column:
    return Column(name=name, type=kind, meaning=meaning, unit=unit, group="result")


def _provenance(name: str, kind: pa.DataType, meaning: str, unit: str = "") -> Column:
    return Column(name=name, type=kind, meaning=meaning, unit=unit, group="provenance")


RECORD_COLUMNS: tuple[Column, ...] = (
    _identity("record_id", _text, "hash of checkpoint_id, plan_id, bitwidths and config_index"),
    _identity("experiment", _text, "name of the training run"),
    _identity("checkpoint", _text, "file name of the checkpoint"),
    _identity("checkpoint_id", _text, "sha256 of the checkpoint's bytes"),
    _identity("epoch", pa.int32(), "training epoch, 0-based, as the checkpoint says"),
    _identity("dataset", _text, "name of the data source"),
    _identity("split", _text, "train, validation or test"),
    _identity("data_id", _text, "fingerprint of the preprocessed inputs and labels"),
    _identity("num_samples", pa.int64(), "samples evaluated", "samples"),
    _identity("model_id", _text, "hash of the layer table"),
    _identity("network_id", _text, "hash of how the network computes: its settings, quantizers and the numerics"),
    _identity("config_id", _text, "hash of the bits"),
    _identity("plan_id", _text, "hash of sampler, seed, options, network, layers, data and numerics"),
    _identity("sampler", _text, "how the configuration was drawn, with the sampler's version"),
    _identity("seed", pa.int64(), "seed of the sampler"),
    _identity("config_index", pa.int64(), "position in the sampler's sequence"),
    _configuration("bitwidths", _bits, "bits of every quantized layer, in forward order", "bits"),
    _configuration("bitwidth_options", _bits, "options the bits were drawn from", "bits"),
    _configuration("avg_bitwidth", pa.float64(), "unweighted mean over quantized layers", "bits", "Average bitwidth"),
    _configuration(
        "weighted_avg_bitwidth", pa.float64(), "mean weighted by weight count", "bits", "Weighted average bitwidth"
    ),
    _configuration("weight_bytes", pa.int64(), "size of the quantized layers' weights", "bytes", "Weight size"),
    _configuration(
        "relative_weight_bytes",
        pa.float64(),
        "weight_bytes against every layer at the largest option",
        "",
        "Relative weight size",
    ),
    _configuration(
        "unquantized_weight_bytes",
        pa.int64(),
        "what else inference keeps, at 32 bits: other parameters, batch norms' statistics",
        "bytes",
        "Unquantized size",
    ),
    _configuration("bit_ops", pa.int64(), "sum of MACs x weight bits x activation bits", "", "Bit operations"),
    _configuration(
        "relative_bit_ops",
        pa.float64(),
        "bit_ops against every layer at the largest option",
        "",
        "Relative bit operations",
    ),
    _configuration("target_cost", _text, "the cost that the sampler aimed at; null where it aimed at none"),
    _configuration("target", pa.float64(), "the value of target_cost that the sampler aimed at"),
    _result("accuracy", pa.float64(), "correct / num_samples"),
    _result("loss", pa.float64(), "mean cross-entropy", "nats"),
    _result("correct", pa.int64(), "samples whose class is predicted right", "samples"),
    _result("correct_mask", pa.binary(), "one bit a sample in data order, least significant bit first"),
    _result("agreement", pa.float64(), "share of predictions equal to the reference configuration's"),
    _result(
        "kl_divergence",
        pa.float64(),
        "mean over samples of KL(reference configuration, this one) of the softmax",
        "nats",
    ),
    _result(
        "top5_correct", pa.int64(), "samples whose class is among the 5 likeliest; null up to 10 classes", "samples"
    ),
    _result("correct_per_class", _counts, "correct, class by class from 0; null unless asked for", "samples"),
    _result("samples_per_class", _counts, "num_samples, class by class; null where correct_per_class is", "samples"),
    _provenance("engine", _text, "which engine computed the row"),
    _provenance("device", _text, "where it ran"),
    _provenance("duration_s", pa.float64(), "time the configuration took", "s"),
    _provenance("evaluated_at", _time, "when the row was computed (UTC)"),
    _provenance("qbw_version", _text, "version of this package"),
    _provenance("torch_version", _text, "version of torch"),
    _provenance("extras_json", _text, "further facts about the row, as a JSON object"),
)

RECORD_SCHEMA: pa.Schema = arrow_schema(RECORD_COLUMNS)


def hash_of(facts: Mapping[str, object]) -> str:
    """Return 32 hex digits that name `facts`: blake2b-128 of their canonical JSON (sorted keys, no spaces).

    Raises:
        TypeError: a value is not plain JSON (None, bool, int, float, str, list, dict).

    >>> hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1})
    True
    """
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()


def record_id_of(checkpoint_id: str, plan_id: str, bitwidths: Sequence[int], config_index: int) -> str:
    """Return the hash of everything that could change a row, from columns of the row, so that a reader can check it."""
    identity = {"checkpoint_id": checkpoint_id, "plan_id": plan_id, "config_index": config_index}
    return hash_of(identity | {"bitwidths": list(bitwidths)})
