"""README.md of the exported model: what it is, how good it is, how to load it.

Its words are in model_card.md.jinja.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modules.models.latents import LatentStatistics
from modules.output.durable import replacing
from modules.tracking.metrics_log import Row, whole_validations
from modules.weights.ldm_layout import unlike_stable_diffusion
from modules.weights.vae_files import FP16_WEIGHTS, LDM_FILE

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
TAGS = ["diffusers", "autoencoder", "vae", "latent-diffusion"]
TASK = "image-to-image"  # of the metrics; as the model's own task it would promise a demo

# Metrics that compare between models, by their names in metrics.jsonl.
COMPARABLE = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips_vgg": "LPIPS (VGG)",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_squeeze": "LPIPS (SqueezeNet)",
    "rfid": "rFID",
}
# The others of a validation; what a newer one measures stands under its own name.
TITLES = COMPARABLE | {
    "psnr_pooled": "PSNR, pooled (dB)",
    "rec_l1": "L1, on [-1, 1]",
    "rec_l2": "L2, on [-1, 1]",
    "kl": "KL (nats per image)",
    "latent_std": "std of the latents",
    "posterior_std": "std of the noise in them",
}
COUNTS = ("val/num_images", "val/nan_images")  # what is no metric in a validation's row


@dataclass(frozen=True)
class Training:
    """How the weights came about, as far as the world may know: no path of this machine."""

    title: str
    architecture: str  # in words
    images: str  # that it was trained on, in words
    repository: str | None = None  # its id on the Hub; None where it can only be loaded from here
    license: str | None = None
    base: str | None = None  # the VAE it started from, in words
    base_model: str | None = None  # that VAE's id on the Hub
    datasets: Sequence[str] = ()  # ids on the Hub
    validation_dataset: str | None = None  # an id as well
    validation_split: str | None = None
    decoder_only: bool = False
    protocol: str = ""  # how the validation's numbers came about, in one line
    stamp: Mapping[str, Any] = field(default_factory=dict)  # the same choices by name
    changes: Sequence[str] = ()  # a sentence on each resume with other flags
    baselines: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # metrics by name
    facts: Mapping[str, str] = field(default_factory=dict)  # hardware, time, by name
    flags: Sequence[str] = ()  # that differ from the defaults, as they are typed


def write_model_card(
    folder: Path,
    training: Training,
    steps: int,
    rows: Iterable[Row],
    latents: LatentStatistics | None = None,
    subfolder: str | None = None,
) -> None:
    """Writes README.md into `folder`, where the weights and pictures of which it speaks lie.

    rows: those of metrics.jsonl; the last validation among them is that of these weights.
    latents: statistics that the configuration's entries on latents come from, if that was the end.
    subfolder: where in `folder` the weights lie, if not in itself: training is under way then.
    """
    weights, validations = folder / (subfolder or ""), whole_validations(rows)
    ldm = (weights / LDM_FILE).exists()
    config = json.loads((weights / "config.json").read_text(encoding="utf-8"))
    picture = f"samples/step-{validations[-1]['step'] if validations else steps:06d}.png"
    card = ModelCard.from_template(
        card_data(training, _eval_results(training, validations)),
        template_path=str(TEMPLATE),
        training=training,
        config=config,
        steps=steps,
        validations=validations,
        counts=COUNTS,
        titles=TITLES,
        latents=latents,
        subfolder=subfolder,
        fp16=(weights / FP16_WEIGHTS).exists(),
        ldm_file=LDM_FILE if ldm else None,
        unlike=unlike_stable_diffusion(config) if ldm else "",
        picture=picture if (folder / picture).exists() else None,
        report=(folder / "report.html").exists(),
    )
    with replacing(folder / "README.md") as partial:
        partial.write_text(str(card), encoding="utf-8", errors="backslashreplace")  # any names


def card_data(training: Training, results: list[EvalResult] | None = None) -> ModelCardData:
    """The card's metadata, by which the Hub lists and links models."""
    return ModelCardData(
        license=training.license,
        library_name="diffusers",
        tags=TAGS,
        base_model=training.base_model,
        base_model_relation="finetune" if training.base_model else None,
        datasets=list(training.datasets) or None,
        model_name=training.title.split("/")[-1],
        eval_results=results or None,
    )


def _eval_results(training: Training, validations: list[Row]) -> list[EvalResult]:
    """The last validation for the Hub's model-index; numbers that are not finite are left out."""
    if not validations:
        return []
    last, dataset = validations[-1], training.validation_dataset
    count = int(last["val/num_images"])
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image reconstruction",
            dataset_type=dataset or "images",
            dataset_name=f"{count} validation images{f' of {dataset}' if dataset else ''}",
            dataset_config=training.protocol or None,
            dataset_split=training.validation_split,
            dataset_args={"num_images": count, **training.stamp},
            metric_type=name,
            metric_name=title,
            metric_value=last[f"val/{name}"],
        )
        for name, title in COMPARABLE.items()
        if math.isfinite(last.get(f"val/{name}", math.nan))
    ]
