"""Writes a model for other programs, without training it.

diffusers: config.json and float32 safetensors, from any file that --model takes. fp16: float16
weights beside them, for from_pretrained(variant="fp16"). ldm: vae_ldm.safetensors, for ComfyUI and
A1111. onnx: vae_encoder/model.onnx (images [B, channels, H, W] in [-1, 1] to the posterior's mean
and log-variance) and vae_decoder/model.onnx (latents to images), for any batch and size, with
Optimum's names; the scaling factor is not applied. They are compared with torch if onnxruntime is
installed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from eval.commands import common

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

HELP = "ONNX, latent-diffusion's layout, float16: the model for other programs"
FORMATS = ("diffusers", "fp16", "ldm", "onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    common.add_model_arguments(parser, nargs=None)
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="folder to write into; may be the model's")
    add("--format", nargs="+", required=True, choices=FORMATS, help="what to write, one or several")


def run(args: argparse.Namespace) -> int:
    """Writes each format; 1 if an ONNX file does not compute what torch computes."""
    from eval.protocol.codecs import VAECodec
    from modules.export.onnx import require_onnx
    from modules.output.folder_lock import FolderLock
    from modules.output.owned_files import OwnedFiles
    from modules.output.run_files import RECORD
    from modules.weights.vae_files import FP16_WEIGHTS, LDM_FILE, save_fp16_variant, save_ldm

    folder, formats = Path(args.output), args.format
    if "onnx" in formats:
        require_onnx()
    vae = VAECodec.open(args.model, args.pretrained_weights).vae
    with FolderLock(folder, flag="output"):  # a run may be at work in there
        if (folder / RECORD).exists():  # one that continues there makes its own anew
            files = {"fp16": FP16_WEIGHTS, "ldm": LDM_FILE}
            OwnedFiles(folder).claim(files[kind] for kind in formats if kind in files)
        if "diffusers" in formats or "fp16" in formats:
            _write_diffusers(vae, folder)
        if "fp16" in formats:
            save_fp16_variant(vae, folder)
            print(f"Wrote {folder / FP16_WEIGHTS}")
        if "ldm" in formats:
            save_ldm(vae, folder / LDM_FILE)
            print(f"Wrote {folder / LDM_FILE}")
        return _write_onnx(vae, folder) if "onnx" in formats else 0


def _write_diffusers(vae: AutoencoderKL, folder: Path) -> None:
    """Writes config and float32 weights, unless just these are there. ValueError for others."""
    import torch

    from modules.export.vae import export_vae
    from modules.weights.vae_files import WEIGHTS, load_vae

    weights = folder / f"{WEIGHTS}.safetensors"
    if not weights.is_file():
        export_vae(vae, folder)
        print(f"Wrote {weights}")
        return
    present = load_vae(folder).state_dict()
    tensors = vae.state_dict()
    if present.keys() != tensors.keys() or not all(
        torch.equal(present[name], tensor) for name, tensor in tensors.items()
    ):
        raise ValueError(f"--output={folder} holds another model; give a new folder")


def _write_onnx(vae: AutoencoderKL, folder: Path) -> int:
    from importlib.util import find_spec

    from modules.export.onnx import TOLERANCE, compare_with_torch, export_onnx

    for file in export_onnx(vae, folder):
        print(f"Wrote {file}")
    if find_spec("onnxruntime") is None:
        print("Not compared with torch: run `pip install onnxruntime` for that")
        return 0
    errors = compare_with_torch(vae, folder)
    for half, error in errors.items():
        print(f"{half}: onnxruntime differs from torch by at most {error:.2g} of the largest value")
    if all(error <= TOLERANCE for error in errors.values()):
        return 0
    print(f"That is more than {TOLERANCE:g}: do not use these files")
    return 1
