"""Request and response types of the HTTP interface."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from ddaebm.model.noise import MAX_SEED

MAX_SAMPLES = 1024
MAX_CANDIDATES = 2048  # most of n·best_of: half of the default queue, 15 s on two cores


class SampleRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"n": 64, "seed": 1}]})

    n: int = Field(1, ge=1, le=MAX_SAMPLES, description="how many images")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="seed of the first image; the others hash (seed, index). Absent: random"
    )
    seeds: list[int] | None = Field(
        None, min_length=1, max_length=MAX_SAMPLES, description="one seed an image, in place of n and seed"
    )
    best_of: int = Field(
        1, ge=1, le=64, description="draw n·best_of images and keep the n of lowest ood_score, in the order drawn"
    )
    include: list[Literal["scores"]] = Field(
        [], max_length=1, description='["scores"] adds energies, ood_score and p_value (JSON and zip)'
    )
    model: str | None = Field(None, description="name of a loaded model; absent: the first")

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if self.n * self.best_of > MAX_CANDIDATES:
            raise ValueError(f"n·best_of is {self.n * self.best_of}; at most {MAX_CANDIDATES} images are drawn")
        if self.seeds is not None:
            if self.model_fields_set & {"n", "seed", "best_of"}:
                raise ValueError("give either seeds, or n, seed and best_of")
            if not all(0 <= seed <= MAX_SEED for seed in self.seeds):
                raise ValueError(f"seeds must lie in 0..{MAX_SEED}")
        return self


class SampledImage(BaseModel):
    seed: int = Field(description="gives this image alone")
    image: str = Field(description="base64 PNG")
    energies: list[float] | None = Field(None, description="with include=scores, as are the next two; see /v1/scores")
    ood_score: float | None = None
    p_value: float | None = None


class SampleResponse(BaseModel):
    model: str
    digest: str = Field(description="of the bundle; the same digest and seed give the same image")
    images: list[SampledImage]


class ScoreQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    alpha: float | None = Field(
        None, gt=0, lt=1, description="false-alarm rate that is accepted; absent: 0.05, or the model's smallest p"
    )
    fdr: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="adds selected to each image: of those that are, such a share is a false alarm",
    )
    heatmap: bool = Field(False, description="add a picture of where each image is strange, and its regions")
    regions: bool = Field(False, description="add the strange regions of each image, without a picture")
    model: str | None = Field(None, description="name of a loaded model; absent: the first")


class ScoreRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    # Bytes, since one character beyond the basic plane would make a text of four bytes for each.
    images: list[Annotated[bytes, WithJsonSchema({"type": "string"})]] = Field(
        min_length=1, fail_fast=True, description="base64 of image files; data: URLs are taken too"
    )


class ImageProblem(BaseModel):
    type: str
    title: str
    status: int
    detail: str


class Region(BaseModel):
    box: list[int] = Field(description="left, top, width, height, in pixels of the model")
    strength: float = Field(description="heat of its hottest place; 1 is that of an ordinary image's, at the median")


class Score(BaseModel):
    index: int
    name: str
    energies: list[float] = Field(description="one for each denoising step, without added noise; low on data")
    energy_quantiles: list[float] = Field(
        description="share of calibration images with a lower energy, one a level: near 1 too hard, near 0 too easy"
    )
    ood_score: float = Field(description="high: out of distribution")
    p_value: float = Field(description="conformal: P(p <= alpha) <= alpha for an in-distribution image")
    is_ood: bool = Field(description="p_value <= alpha")
    selected: bool | None = Field(None, description="with fdr=q: by Benjamini–Hochberg over this request's images")
    because: Literal["whole", "spot"] = Field(description="what makes the score: the whole image, or its hottest spot")
    box: list[int] | None = Field(None, description="of the spot: left, top, width, height, in pixels of the model")
    regions: list[Region] | None = Field(
        None,
        description="with regions=true or heatmap=true: where the image is strange, the strongest first, at most 5",
    )
    resized: bool = Field(description="the image had another size than the model takes")
    heatmap: str | None = Field(None, description="with heatmap=true: base64 PNG, bright where it is strange")


class Unreadable(BaseModel):
    index: int
    name: str
    error: ImageProblem


class ScoreResponse(BaseModel):
    model: str
    digest: str
    alpha: float
    fdr: float | None = Field(None, description="with fdr=q")
    calibration_size: int
    results: list[Score | Unreadable]


class Preprocessing(BaseModel):
    height: int
    width: int
    channels: int
    resize_filter: str


class FalseAlarms(BaseModel):
    alpha: float
    low: float = Field(description="the realised false-alarm rate lies above this with 99.5 %")
    high: float


class Calibration(BaseModel):
    size: int
    smallest_p: float = Field(description="an alpha below it is refused")
    false_alarm_intervals: list[FalseAlarms] = Field(description="99 % intervals, exact")


class Caught(BaseModel):
    fault: str
    severity: str
    auroc: float
    caught: float = Field(description="share of faulty images with p_value <= alpha")


class Fit(BaseModel):
    fitted: int = Field(description="images that the score was fitted to")
    calibrated: int
    alpha: float
    side: int | None = Field(None, description="pixels along a side of an image that is scored densely")
    form: str | None = Field(None, description="the form of the score that was chosen")
    forms: dict[str, float] | None = Field(None, description="mean AUROC of each form that was compared, over `power`")
    power: list[Caught] = Field(description="ordinary images made faulty, and what is caught of them; the worst first")


class ModelInfo(BaseModel):
    name: str
    digest: str
    backend: str
    num_steps: int
    preprocessing: Preprocessing
    calibration: Calibration
    form: Literal["whole", "whole and spot"] = Field(description="what the score is made of")
    fit: Fit | None = Field(None, description="of `ddaebm fit`; absent for a bundle that it did not make")


class ModelList(BaseModel):
    models: list[ModelInfo]


class Status(BaseModel):
    status: str
