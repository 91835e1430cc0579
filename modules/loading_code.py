"""The lines of Python that a model card shows: how to load the VAE and how to use its latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.ldm_layout import unlike_stable_diffusion
from modules.vae_files import FP16_WEIGHTS, LDM_FILE

CODE = """```python
import torch
from diffusers import AutoencoderKL

{lines}
```"""

FP16 = """In half the size, and for half the memory:

```python
vae = AutoencoderKL.from_pretrained({arguments}, variant="fp16", torch_dtype=torch.float16)
```"""

LDM = f"`{LDM_FILE}` holds the same weights in latent-diffusion's layout"


def loading_code(folder: Path, name: str, subfolder: str | None, config: Mapping[str, Any]) -> str:
    """Markdown that loads what lies in `folder`; says so where no weights do.

    name: what `from_pretrained` is to be given. config: the VAE's, for its normalisation of latents
    to unit scale, which the code undoes before it decodes.
    """
    weights = folder / subfolder if subfolder else folder
    if not (weights / "config.json").exists():
        return "No weights have been uploaded yet."
    arguments = json.dumps(name, ensure_ascii=False)
    if subfolder:
        arguments += f", subfolder={json.dumps(subfolder)}"
    before, after = _normalization(config)
    parts = [CODE.format(lines="\n".join([
        f"vae = AutoencoderKL.from_pretrained({arguments})",
        "",
        "# images: [B, 3, H, W] in [-1, 1]; a diffusion model sees latents of unit scale",
        "latents = vae.encode(images).latent_dist.sample()",
        *before,
        "",
        "# and back to images",
        *after,
        "images = vae.decode(latents).sample",
    ]))]  # fmt: skip
    if (weights / FP16_WEIGHTS).exists():
        parts.append(FP16.format(arguments=arguments))
    if (weights / LDM_FILE).exists():
        unlike = unlike_stable_diffusion(config)
        programs = f"but ComfyUI and A1111 cannot build it: {', '.join(unlike)}" if unlike else (
            "for ComfyUI and A1111"
        )  # fmt: skip
        parts.append(f"{LDM}, {programs}.")
    return "\n\n".join(parts)


def _normalization(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Lines that bring latents to unit scale, and lines that undo it."""
    if config.get("latents_mean") is not None:
        mean = "mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1)"
        std = "std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1)"
        scaled = "latents = (latents - mean) / std * vae.config.scaling_factor"
        return [mean, std, scaled], ["latents = latents * std / vae.config.scaling_factor + mean"]
    if config.get("shift_factor") is not None:
        scaled = "latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor"
        undone = "latents = latents / vae.config.scaling_factor + vae.config.shift_factor"
        return [scaled], [undone]
    scaled = "latents = latents * vae.config.scaling_factor"
    return [scaled], ["latents = latents / vae.config.scaling_factor"]
