"""README.md of the exported model: what it is, how good it is, how to load it."""

from __future__ import annotations

import os
from pathlib import Path

from diffusers import AutoencoderKL
from huggingface_hub import ModelCardData

from modules.arguments import Arguments
from modules.autoencoder import describe
from modules.latents import LatentStatistics

TAGS = ["diffusers", "autoencoder", "vae", "latent-diffusion"]

BODY = """# {name}

{architecture}, trained on {data} for {steps} steps{base}.

```python
from diffusers import AutoencoderKL

vae = AutoencoderKL.from_pretrained("{name}")
```

{metrics}

{latents}

{samples}Every flag of the run is in `train_config.yaml`, every number it logged in `metrics.jsonl`.
"""


SAMPLES = """Original, reconstruction, and eight times the error between them:

![samples]({picture})

"""


def write_model_card(
    folder: Path,
    args: Arguments,
    vae: AutoencoderKL,
    *,
    steps: int,
    data: str,
    latents: LatentStatistics | None,
    validations: list[dict[str, float]],
) -> None:
    """Writes README.md into `folder`. validations: the rows of metrics.jsonl with val/ numbers."""
    base, name = args.model.pretrained_model_name_or_path, args.logging.hub_model_id or folder.name
    picture = f"samples/step-{steps:06d}.png"
    text = BODY.format(
        name=name,
        architecture=describe(vae),
        data=data,
        steps=steps,
        base=f", starting from `{base}`" if base else "",
        metrics=_metrics(validations),
        latents=_latents(vae, latents),
        samples=SAMPLES.format(picture=picture) if (folder / picture).exists() else "",
    )
    header = ModelCardData(library_name="diffusers", tags=TAGS, base_model=base)
    partial = folder / ".README.partial"
    partial.write_text(f"---\n{header.to_yaml()}\n---\n\n{text}", encoding="utf-8")
    os.replace(partial, folder / "README.md")


def _metrics(validations: list[dict[str, float]]) -> str:
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
    return "\n".join([
        f"| {count} validation images | step {first['step']} | step {last['step']} |",
        "|---|---|---|",
        *rows,
    ])  # fmt: skip


def _number(row: dict[str, float], name: str) -> str:
    value = row.get(f"val/{name}")
    return "not measured" if value is None else f"{value:.4g}"


def _latents(vae: AutoencoderKL, latents: LatentStatistics | None) -> str:
    factor = f"`scaling_factor` is {vae.config.scaling_factor:.5g}"
    if latents is None:
        return f"The encoder was not trained; {factor}, as before."
    dead = f", dead channels: {latents.dead_channels}" if latents.dead_channels else ""
    return (
        f"{factor}, measured over {latents.num_images} images: the latents have a standard "
        f"deviation of {latents.global_std:.4g}, a mean of {latents.global_mean:.4g} and "
        f"{latents.kl:.0f} nats of KL per image{dead}."
    )
