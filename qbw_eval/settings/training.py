"""The section `training`: how `qbw-eval train` makes checkpoints."""

from pydantic import Field

from qbw_eval.settings.kinds import MAX_SEED, Settings


class TrainingSettings(Settings):
    """How `qbw-eval train` makes checkpoints."""

    epochs: int = Field(default=30, ge=1, le=1_000_000, description="passes over the training data")
    batch_size: int = Field(default=64, ge=1, le=65536, description="samples a batch when training")
    learning_rate: float = Field(default=1e-3, gt=0, description="AdamW's, at the start of its cosine schedule")
    weight_decay: float = Field(default=1e-4, ge=0, description="AdamW's decoupled weight decay")
    configurations_per_batch: int = Field(
        default=2, ge=1, le=1024, description="joint_quantization: random bitwidth configurations a batch is seen at"
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="of initialization, batch order and configurations")
