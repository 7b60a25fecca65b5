"""``GrowthConfig``: all that a growth run can be told, with the paper's values as one of three presets.

The presets are declared in :data:`PRESETS`; any option can be overridden::

    GrowthConfig.preset("laptop", phases=4)
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from morphir.errors import MorphirError, did_you_mean
from morphir.runtime.learning.curvature import AUTO, BENT, NAMES
from morphir.runtime.learning.theta_optimizer import ThetaOptimizerName

LearningRateSchedule = Literal["constant", "steps", "cosine"]
ThetaSchedule = Literal["constant", "cosine"]
Final = Literal["retrain", "fine-tune", "none"]
Positive = Annotated[float, Field(gt=0)]
LARGEST_SEED = 2**63 - 1
"""torch's generators take no more than 64 bits, and each phase counts up from the seed."""


class GrowthConfig(BaseModel):
    """The options of a growth run (Algorithm 1 of the paper); docs/configuration.md has them as a table.

    Raises:
        MorphirError: for an unknown option or a value out of range; the message says which, and what is
            allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    phases: int = Field(
        8, ge=0, description="growth phases; each trains weights, learns morphisms, and rewrites"
    )
    train_epochs: int = Field(1, ge=0, description="epochs of weight training in a phase")
    learn_epochs: int = Field(1, ge=1, description="epochs of morphism learning in a phase")
    learn_steps: int | None = Field(None, ge=1, description="most steps in an epoch of morphism learning")

    batch_size: int = Field(
        64, ge=1, description="samples in a training batch (for the command line's loaders)"
    )
    lr: float = Field(0.1, gt=0, description="learning rate of the weights")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(True, description="Nesterov's momentum")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay")
    lr_schedule: LearningRateSchedule = Field("steps", description="how the rate falls while growing")
    milestones: tuple[Positive, ...] = Field(
        (0.5, 0.75),
        description="where 'steps' multiplies by gamma: up to 1 fractions of all epochs, above 1 epochs",
    )
    gamma: float = Field(0.1, gt=0, le=1, description="factor at a milestone")

    theta_optimizer: ThetaOptimizerName = Field(
        "adam-mini", description="Adam with a second moment for each channel, or adam: for each entry"
    )
    theta_lr: float = Field(0.2, gt=0, description="learning rate of theta")
    theta_lr_absolute: bool = Field(
        False, description="whether it is taken as it is; else times the root mean square of theta's kernel"
    )
    theta_lr_schedule: ThetaSchedule = Field("cosine", description="how it falls over a phase's learning")
    theta_scale: float = Field(
        0.1, gt=0, description="theta's first values, relative to the producer's weights"
    )
    ema: float | None = Field(
        None, gt=0, le=1, description="momentum of the scores' average; None is (batch / dataset) / 2"
    )
    learn_curvature: str = Field(
        "auto", description="curvature term that theta is learned against; auto is mixed, or batch"
    )
    score_curvature: str = Field(
        "auto", description="curvature term of the scores; auto is shrunk-fisher, or batch"
    )

    calibration_batches: int = Field(
        0,
        ge=0,
        description="batches to measure on how far the scores' second-order terms are off; 0 for none",
    )

    splits: bool = Field(True, description="whether channels may be split")
    prunes: bool = Field(True, description="whether channels may be pruned")
    keep: tuple[str, ...] = Field(
        (), description="spaces that are left as they are: names, or patterns such as layer4.*"
    )
    lambda_parameters: float = Field(0.0, ge=0, description="price of a parameter, in loss")
    lambda_macs: float = Field(0.0, ge=0, description="price of a multiply-accumulate, in loss")
    best_fraction: float = Field(
        0.3, gt=0, le=1, description="share of a space's paying morphisms that is applied"
    )
    max_parameters: int | None = Field(None, ge=1, description="no phase grows past this many parameters")
    max_macs: int | None = Field(None, ge=1, description="no phase grows past this many multiply-accumulates")
    min_width: int = Field(1, ge=1, description="prunes leave at least this many groups of a space")
    width_multiple: int = Field(
        1, ge=1, description="the last phase rounds every space's channels to a multiple of this"
    )
    theta_factors: tuple[Positive, ...] = Field(
        (1.0, 0.7, 0.5, 0.35, 0.25),
        min_length=1,
        description="factors on theta that a whole selection is tried with; one alone is taken as it is",
    )
    theta_halvings: int = Field(
        6,
        ge=0,
        description="how often the smallest factor is halved while the splits raise the loss",
    )
    plan_halvings: int = Field(
        6,
        ge=0,
        description="how often the prunes, and then the splits, are halved for a smaller loss and price",
    )
    trial_batches: int = Field(8, ge=1, description="training batches to try the factors on")
    recalibration_batches: int = Field(
        50, ge=0, description="batches for exact running statistics before morphisms are learned; 0 for none"
    )
    batch_norm_batches: int = Field(8, ge=1, description="batches for the batch statistics of split channels")

    final: Final = Field("retrain", description="retrain (from new weights), fine-tune, or none")
    final_epochs: int = Field(8, ge=0, description="epochs of the final training")
    final_lr: float | None = Field(None, gt=0, description="its learning rate; None is lr")
    final_lr_schedule: LearningRateSchedule = Field("cosine", description="how its rate falls")

    seed: int = Field(0, ge=0, le=LARGEST_SEED, description="seeds every random choice")
    deterministic: bool = Field(False, description="ask torch for deterministic algorithms alone")
    device: str | None = Field(
        None, description="cpu, cuda, cuda:1, mps, ...; None is where the graph is, for the command line auto"
    )
    amp: bool = Field(False, description="bfloat16 autocast")
    channels_last: bool = Field(False, description="channels-last memory format")
    compile: bool = Field(False, description="compile the learning steps' elementwise work, by torch.compile")
    check_every: int = Field(
        20, ge=1, description="steps between looks at the loss (each waits for the device)"
    )
    keep_checkpoints: int = Field(2, ge=1, description="how many of the last checkpoints stay")

    if not TYPE_CHECKING:  # type checkers keep the generated signature

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _readable(error) from None

    @field_validator("learn_curvature", "score_curvature")
    @classmethod
    def _curvature_is_known(cls, name: str) -> str:
        if name not in NAMES:
            raise ValueError(f"there is no such curvature; there are {', '.join(NAMES)}")
        return name

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> GrowthConfig:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    @model_validator(mode="after")
    def _calibration_has_a_term(self) -> GrowthConfig:
        if self.calibration_batches and self.score_curvature not in (AUTO, *BENT):
            raise ValueError("calibration_batches needs a score_curvature with a second-order term")
        return self

    @model_validator(mode="after")
    def _phases_may_change_something(self) -> GrowthConfig:
        if self.phases and not (self.splits or self.prunes):
            raise ValueError(
                "phases have nothing to do where neither splits nor prunes are allowed: phases=0"
            )
        return self

    @staticmethod
    def preset(name: str, **overrides: Any) -> GrowthConfig:
        """Returns a preset, with some options overridden.

        Args:
            name: ``"paper"``, ``"laptop"`` or ``"demo"``.
            **overrides: Any field.

        Raises:
            MorphirError: for an unknown preset or option, or a value out of range.
        """
        if name not in PRESETS:
            raise MorphirError(f"there is no preset {name!r}", hint=_suggestion(name, PRESETS))
        return GrowthConfig.of({**PRESETS[name], **overrides})

    @staticmethod
    def of(options: Mapping[str, Any]) -> GrowthConfig:
        """Returns the configuration with these options, and the defaults for the rest.

        Raises:
            MorphirError: for an unknown option, or a value out of range.
        """
        return GrowthConfig.model_validate(dict(options))

    def differences(self, other: GrowthConfig) -> dict[str, tuple[Any, Any]]:
        """Returns this and the other value of each option that differs and matters for a run's results."""
        mine, others = self.model_dump(mode="json"), other.model_dump(mode="json")
        return {k: (mine[k], others[k]) for k in mine if mine[k] != others[k] and k not in _FREE_ON_RESUME}

    def keeps(self, space: str) -> bool:
        """Whether a space is to be left as it is."""
        return any(fnmatchcase(space, pattern) for pattern in self.keep)

    @property
    def prices(self) -> Mapping[str, float]:
        """Resource name to lambda, the loss that one unit of it is worth."""
        return {"parameters": self.lambda_parameters, "macs": self.lambda_macs}

    @property
    def budgets(self) -> Mapping[str, int]:
        """Resource name to the most of it that the network may use, for those with a limit."""
        limits = {"parameters": self.max_parameters, "macs": self.max_macs}
        return {name: limit for name, limit in limits.items() if limit is not None}


_FREE_ON_RESUME = frozenset({"device", "keep_checkpoints", "check_every"})

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Section 4: 30 phases of 20 epochs, which train weights and learn morphisms in turn; 600 epochs in all.
    "paper": {
        "phases": 15,
        "train_epochs": 20,
        "learn_epochs": 20,
        "batch_size": 64,
        "lr_schedule": "steps",
        "milestones": (300, 450),
        "theta_optimizer": "adam",
        "theta_lr": 1e-2,
        "theta_lr_absolute": True,
        "theta_lr_schedule": "constant",
        "learn_curvature": "batch",
        "score_curvature": "batch",
        "lambda_parameters": 3e-7,
        "theta_factors": (1.0,),
        "theta_halvings": 0,
        "plan_halvings": 0,
        "recalibration_batches": 0,
        "final_epochs": 600,
        "final_lr_schedule": "steps",
    },
    "laptop": {
        "phases": 6,
        "train_epochs": 1,
        "learn_epochs": 1,
        "learn_steps": 100,
        "batch_size": 128,
        "lr": 0.05,
        "lr_schedule": "constant",
        "theta_factors": (1.0, 0.5, 0.35, 0.25, 0.125),
        "ema": 0.05,
        "lambda_parameters": 1e-7,
        "min_width": 2,
        "channels_last": True,
        "final_epochs": 5,
        "final_lr": 0.1,
    },
    "demo": {
        "phases": 4,
        "train_epochs": 8,
        "learn_epochs": 3,
        "batch_size": 64,
        "lr": 0.05,
        "lr_schedule": "constant",
        "ema": 0.1,
        "lambda_parameters": 1e-6,
        "final": "fine-tune",
        "final_epochs": 25,
    },
}


def _readable(error: ValidationError) -> MorphirError:
    """Turns pydantic's report into one sentence for each fault."""
    faults: list[str] = []
    hints: list[str] = []
    for fault in error.errors():
        name = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            faults.append(f"there is no option {name!r}")
            hints.append(_suggestion(name, GrowthConfig.model_fields))
        else:
            message = fault["msg"].removeprefix("Value error, ")
            faults.append(f"{name}: {message}, got {fault['input']!r}" if name else message)
    return MorphirError("growth configuration: " + "; ".join(faults), hint="; ".join(hints) or None)


def _suggestion(name: str, known: Mapping[str, Any]) -> str:
    return f"{did_you_mean(name, known)}there are: {', '.join(known)}"
