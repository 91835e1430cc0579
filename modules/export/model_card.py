"""README.md of the exported model: what it is, how good it is, how to load it."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from modules.config.arguments import GROUPS, Arguments
from modules.config.fates import shown
from modules.config.inputs import DataArguments
from modules.export.loading_code import loading_code
from modules.models.autoencoder import describe
from modules.models.latents import LatentStatistics

TAGS = ["diffusers", "autoencoder", "vae", "latent-diffusion"]
TASK = "image-to-image"  # of the metrics; as the model's own task it would promise a demo

# What the weights come from; the other flags say what was written and where.
OF_THE_WEIGHTS = [group for name, group in GROUPS.items() if name not in ("checkpoints", "logging")]

# Metrics that compare between models, by their names in metrics.jsonl.
COMPARABLE = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips_vgg": "LPIPS (VGG)",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_squeeze": "LPIPS (SqueezeNet)",
}

BODY = """# {title}

{architecture}, {history}.

{loading}

{samples}## Quality

{metrics}

## Latents

{latents}

## Training

Every flag of the run is in `train_config.yaml`, every number it logged in `metrics.jsonl`{report}.
{changes}"""

SAMPLES = """Original, reconstruction, and eight times the error between them:

![samples]({picture})

"""


@dataclass(frozen=True)
class Provenance:
    """What a card says that its folder does not.

    protocol: how the validation's numbers came about, in one line; stamp: the same choices by name.
    repository: the full id on the Hub, if the run is pushed there.
    """

    protocol: str = ""
    stamp: Mapping[str, Any] = field(default_factory=dict)
    repository: str | None = None


def write_model_card(
    folder: Path,
    args: Arguments,
    vae: AutoencoderKL,
    *,
    steps: int,
    latents: LatentStatistics | None,
    validations: list[dict[str, float]],
    provenance: Provenance,
    history: Sequence[Mapping[str, Any]] = (),
    subfolder: str | None = None,
) -> None:
    """Writes README.md into `folder`, where the weights and pictures of which it speaks lie.

    validations: the rows of metrics.jsonl with val/ numbers, the last of them of these weights.
    history: at which steps the run was resumed with other flags, as in a checkpoint.
    subfolder: where in `folder` the weights lie, if not in itself: training is under way then.
    """
    name = provenance.repository or args.logging.hub_model_id or folder.resolve().name
    step = validations[-1]["step"] if validations else steps
    picture = f"samples/step-{step:06d}.png"
    text = BODY.format(
        title=html.escape(name, quote=False),
        architecture=describe(vae),
        history=_history(args, steps, step if subfolder else None),
        loading=loading_code(folder, name, subfolder, vae.config),
        metrics=_metrics(validations, provenance),
        latents=_latents(args, vae, latents),
        report=", its curves are in `report.html`" if (folder / "report.html").exists() else "",
        changes="".join(map(_change, history)),
        samples=SAMPLES.format(picture=picture) if (folder / picture).exists() else "",
    )
    results = _eval_results(args, validations, provenance)
    header = card_data(args, name, results)
    partial = folder / ".README.partial"
    text = f"---\n{header.to_yaml()}\n---\n\n{text}"
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may be any bytes
    os.replace(partial, folder / "README.md")


def card_data(args: Arguments, name: str, results: list[EvalResult] | None = None) -> ModelCardData:
    """The card's metadata. Paths on this machine are left out: only what is on the Hub is named."""
    base = hub_id(args.model.pretrained_model_name_or_path)
    return ModelCardData(
        license=args.logging.hub_license,
        library_name="diffusers",
        tags=TAGS,
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=hub_datasets(args.data) or None,
        model_name=name.split("/")[-1],
        eval_results=results or None,
    )


def hub_id(name: str | None) -> str | None:
    """`name` where it is that of a repository on the Hub, None for anything on this machine."""
    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def hub_datasets(args: DataArguments) -> list[str]:
    """The Hub ids among the data sets that training images come from."""
    # "imagefolder" and its like are no ids, but ways to read the files that other flags name.
    reads_files = bool(args.data_files or args.train_data_dir)
    return [
        name
        for name in args.dataset_name or ()
        if name != "synthetic" and hub_id(name) and ("/" in name or not reads_files)
    ]


def _images(args: DataArguments) -> str:
    published, names = hub_datasets(args), args.dataset_name or ()
    parts = [f"[{name}](https://huggingface.co/datasets/{name})" for name in published]
    if "synthetic" in names or not (names or args.train_data_dir):
        parts.append("pictures drawn by the trainer itself (`--dataset_name synthetic`)")
    if {*names} - {*published, "synthetic"} or (args.train_data_dir and not names):
        parts.append("images that are not on the Hub")
    return " and ".join(parts)


def _history(args: Arguments, steps: int, best_step: int | None) -> str:
    base = args.model.pretrained_model_name_or_path
    start = f", starting from {f'`{base}`' if hub_id(base) else 'another VAE'}" if base else ""
    text = f"trained on {_images(args.data)} for {steps} steps{start}"
    if best_step is None:
        return text
    return f"{text}. Training is under way; these are the best weights so far, of step {best_step}"


def _change(change: Mapping[str, Any]) -> str:
    """A paragraph on one resume with other flags; of those that name something, only which."""
    flags = {f.name: f for group in OF_THE_WEIGHTS for f in fields(group)}
    parts = []
    for name, (before, now) in change["flags"].items():
        if name not in flags:
            continue
        free_text = "str" in flags[name].type and not flags[name].metadata["choices"]
        values = f"`{name}` {shown(now)} (before: {shown(before)})"
        parts.append(f"another `{name}`" if free_text else values)
    if change["measured_anew"]:
        parts.append("other validation images or sizes, so that metrics begin there")
    return f"\nFrom step {change['step']} on: {', '.join(parts)}.\n" if parts else ""


def _metrics(validations: list[dict[str, float]], provenance: Provenance) -> str:
    if not validations:
        return "No validation images were set aside, so there are no metrics."
    first, last = validations[0], validations[-1]
    names = [name.removeprefix("val/") for name in last if name.startswith("val/")]
    rows = [  # a metric may be missing at first: --perceptual_scale can change at a resume
        f"| {name} | {_number(first, name)} | {_number(last, name)} |"
        for name in names
        if name not in ("num_images", "nan_images")
    ]
    count = f"{last['val/num_images']:.0f}"
    protocol = (
        ["", f"How they were measured: {provenance.protocol}."] if provenance.protocol else []
    )
    return "\n".join([
        f"| {count} validation images | step {first['step']} | step {last['step']} |",
        "|---|---|---|",
        *rows,
        *protocol,
    ])  # fmt: skip


def _number(row: dict[str, float], name: str) -> str:
    value = row.get(f"val/{name}")
    return "not measured" if value is None else f"{value:.4g}"


def _eval_results(
    args: Arguments, validations: list[dict[str, float]], provenance: Provenance
) -> list[EvalResult]:
    """The last validation for the Hub's model-index; numbers that are not finite are left out."""
    if not validations:
        return []
    last, validation = validations[-1], args.validation
    elsewhere = validation.validation_image or validation.validation_data_dir
    sources, published = args.data.dataset_name or (), hub_datasets(args.data)
    dataset = published[0] if len(sources) == len(published) == 1 and not elsewhere else None
    count = int(last["val/num_images"])
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image reconstruction",
            dataset_type=dataset or "images",
            dataset_name=f"{count} validation images{f' of {dataset}' if dataset else ''}",
            dataset_config=provenance.protocol or None,
            dataset_split=(validation.validation_split or args.data.train_split)
            if dataset
            else None,
            dataset_args={"num_images": count, **provenance.stamp},
            metric_type=name,
            metric_name=title,
            metric_value=last[f"val/{name}"],
        )
        for name, title in COMPARABLE.items()
        if math.isfinite(last.get(f"val/{name}", math.nan))
    ]


def _latents(args: Arguments, vae: AutoencoderKL, latents: LatentStatistics | None) -> str:
    factor = f"`scaling_factor` is {vae.config.scaling_factor:.5g}"
    if vae.config.shift_factor is not None:
        factor += f", `shift_factor` {vae.config.shift_factor:.5g}"
    if vae.config.latents_mean is not None:
        factor += ", `latents_mean` and `latents_std` are those of each channel"
    if args.model.decoder_only:
        return f"The encoder was not trained; {factor}, as before."
    if latents is None:
        return f"{factor}, measured over the validation images."
    dead = f", dead channels: {latents.dead_channels}" if latents.dead_channels else ""
    channels = zip(latents.channel_mean, latents.channel_std, strict=True)
    return "\n".join([
        f"{factor}, measured over {latents.num_images} images: the latents have a standard "
        f"deviation of {latents.global_std:.4g}, a mean of {latents.global_mean:.4g} and "
        f"{latents.kl:.0f} nats of KL per image{dead}.",
        "",
        "| channel | mean | standard deviation |",
        "|---|---|---|",
        *(f"| {number} | {mean:.4g} | {std:.4g} |" for number, (mean, std) in enumerate(channels)),
    ])  # fmt: skip
