"""The names of what a run writes into `output_dir`, and which of them are for the world to see."""

from __future__ import annotations

# What a run leaves behind; anything else in the folder is not ours to delete or to upload.
WRITTEN = (
    "checkpoints", "best", "samples", "discriminator", "logs", "metrics.jsonl",
    "metrics.damaged.jsonl", "bad_images.txt", "config.json", "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors", "train_config.yaml", "report.html", "README.md",
    "vae_ldm.safetensors",
)  # fmt: skip

# Never uploaded. Checkpoints are several times the size of the weights, a repository keeps every
# version for good, and only this trainer reads them; bad_images.txt names the user's own files.
KEPT_AT_HOME = ("checkpoints", "logs", "bad_images.txt", "metrics.damaged.jsonl")

# What a push in the middle of training consists of: everything that is complete at that moment.
COMPLETE_MIDWAY = ("best", "samples", "metrics.jsonl", "report.html", "train_config.yaml")

SNAPSHOT = ".push"  # the folder in `output_dir` where such a push is put together


def uploaded_patterns() -> list[str]:
    """Glob patterns of what may leave `output_dir`, for `HfApi.upload_folder`."""
    names = [name for name in WRITTEN if name not in KEPT_AT_HOME]
    return [pattern for name in names for pattern in (name, f"{name}/*")]
