"""The knobs of the demo world."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_CLIPS = 10_000_000


class SceneConfig(BaseModel):
    """A world of clips with several events each, of which one is annotated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clips: int = Field(default=20_000, ge=2_000, le=MOST_CLIPS)
    classes: int = Field(default=20, ge=4, le=512)
    """Number of events of a generated label table; that of a given table replaces it."""
    label_table: str | None = None
    """An .npz with a multi-hot matrix (clips, classes) and perhaps `classes`; None generates one."""
    label_model: Literal["generated", "resample", "fit"] = "generated"
    """resample draws rows of the table; fit draws from a model with its rates and pairwise co-occurrence."""
    hidden: float | None = Field(default=0.5, gt=0, lt=0.9)
    """Share of all events that nobody annotated; None keeps what the label table has.  With it a fitted model's rates
    are shifted together, its correlations stay."""
    unannotated: float = Field(default=0, ge=0, lt=1)
    """Share of train clips without any annotation (label -1)."""
    noise: float = Field(default=0.5, ge=0)
    """Standard deviation of the noise in the latent space, where a prototype has length 1."""
    both: float = Field(default=0.7, ge=0, le=1)
    """Probability that an event is in both modalities; otherwise it is in one of them, equally often."""
    edges: int | None = Field(default=None, ge=0)
    """Planted cross-modal dependencies; None: as many as classes."""
    strength: tuple[float, float] = (0.5, 0.9)
    """Range of the probability with which a cause brings its effect."""
    audio_size: int = Field(default=128, ge=2)
    visual_size: int = Field(default=1024, ge=2)
    latent: int = Field(default=32, ge=2)
    """Dimensions in which prototypes and noise live, before the non-linear map."""
    validation_share: float = Field(default=0.1, gt=0, lt=0.4)
    test_share: float = Field(default=0.1, gt=0, lt=0.4)
    seed: int = Field(default=0, ge=0)
    row_group_rows: int = Field(default=1024, ge=1)
    shard_rows: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> SceneConfig:
        if (self.label_table is None) != (self.label_model == "generated"):
            raise ValueError("label_model resample and fit need a label_table, generated takes none")
        if self.label_model == "resample" and self.hidden is not None:
            raise ValueError(
                "the rows of a label table decide the share of hidden events; set hidden to none, or label_model to fit"
            )
        low, high = self.strength
        if not 0 < low <= high <= 1:
            raise ValueError(f"strength is {self.strength}; two probabilities in rising order are allowed")
        most = 2 * self.classes * (self.classes - 1) // 2
        if self.edges is not None and self.edges > most:
            raise ValueError(
                f"edges is {self.edges}; at most {most} fit {self.classes} classes without a cycle"
            )
        if self.shard_rows is not None and self.shard_rows % self.row_group_rows:
            raise ValueError(
                f"shard_rows is {self.shard_rows}; it must be a multiple of row_group_rows = {self.row_group_rows}"
            )
        return self
