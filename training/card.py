"""The model card of a bundle: description, training, evaluation and limits."""

from collections.abc import Mapping
from typing import Any

from ddaebm.model.ood.scoring import Scorer


def model_card(
    name: str,
    command: str,
    training: Mapping[str, Any],
    splits: Mapping[str, Any],
    scorer: Scorer,
    report: Mapping[str, Any] | None,
) -> str:
    """Write the model card in Markdown.

    Args:
        command: The command line that trains the model.
        training: The training section of the manifest.
        splits: Count and sha256 of each part of the data.
        report: Output of `training.evaluate.ood_report`, optionally with `training.quality.quality_report` under
            `samples`; None if the model was not evaluated.
    """
    parts = "\n".join(f"| {part} | {entry['count']} | `{entry['sha256']}` |" for part, entry in splits.items())
    return f"""# {name}

An adversarial energy-based model inside each step of a denoising diffusion (DDAEBM, Geng et al., ICML 2024,
arXiv 2403.01666): it makes images, and gives any image an energy and a calibrated out-of-distribution p-value.

![64 samples, seed 1](samples.png)

64 samples of seed 1, in order, none left out.

## Training

    {command}

{training["trained_steps"]} steps of batch {training["batch_size"]}, seed {training["seed"]},
torch {training["torch"]}. The bundle holds the averaged (EMA) weights. Every other setting is in `bundle.json`.

| part of the data | images | sha256 of the pixels |
|---|---|---|
{parts}

The networks saw `train` alone. `reference` standardises the OOD score, `calibration` turns it into p-values.

{_quality(report) if report else _NOT_EVALUATED}
## Limits

- A p-value speaks of images that come to it as the training images came: p ≤ alpha has probability at most
  alpha for such an image, on average over calibration sets. It promises nothing about which strange images
  are caught.
- The smallest possible p-value is {scorer.smallest_p:.3g} ({len(scorer.calibration_scores)} calibration
  images); a smaller alpha is refused.
- Images of another size or colour mode are converted first, and the conversion itself can look unusual.
"""


_NOT_EVALUATED = "Not evaluated: `ddaebm evaluate BUNDLE --data TEST_IMAGES --ood OTHER_IMAGES` does it.\n"


def _quality(report: Mapping[str, Any]) -> str:
    alarms = "\n".join(
        f"| {row['alpha']} | {row['observed']:.4f} | {row['low']:.4f} to {row['high']:.4f} |"
        for row in report["false_alarms"]
    )
    sets = "\n".join(
        f"| {name} | {row['images']} | {row['auroc']:.4f} |"
        f" {', '.join(f'{value:.3f}' for value in row['auroc_of_each_energy'])} |"
        f" {row['detected'].get('0.05', float('nan')):.3f} |"
        for name, row in report["ood"].items()
    )
    return f"""## Quality

False alarms on {report["test_images"]} test images, which neither training nor calibration saw:

| alpha | observed | 99 % interval of the promised rate |
|---|---|---|
{alarms}

Against other data (AUROC with OOD as the positive class):

| set | images | AUROC of the score | AUROC of each level's energy alone | caught at alpha = 0.05 |
|---|---|---|---|---|
{sets}
{_samples(report["samples"]) if "samples" in report else ""}"""


def _samples(report: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {what} | {values['fd_classifier']:.2f} | {values['kid']:.4f} | {values['precision']:.3f}"
        f" | {values['recall']:.3f} |"
        for what, values in (("samples", report), ("unseen real images", report["floor"]))
    )
    classes = ", ".join(f"{name} {count}" for name, count in report["classes"].items())
    return f"""
{report["images"]} samples of seed {report["seed"]} against the test images, in the features of the classifier
`{report["classifier"][:12]}` (`ddaebm classifier`), and beside them {report["floor"]["images"]} held-out images, which
are as near as a perfect model would come:

| | FD-classifier | KID | precision | recall |
|---|---|---|---|---|
{rows}

What the classifier takes the first {sum(report["classes"].values())} samples for: {classes}.
"""
