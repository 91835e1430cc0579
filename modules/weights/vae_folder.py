"""Where an AutoencoderKL lies in a folder or repository that diffusers, or its users, laid out."""

from __future__ import annotations

from pathlib import Path

from modules.weights.model_config import Config, is_autoencoder_kl, read_config
from modules.weights.sources import Source, join
from modules.weights.tensor_files import UnusableModel
from modules.weights.vae_selection import describe_names

WEIGHTS = "diffusion_pytorch_model"


def find_config(source: Source, subfolder: str | None) -> tuple[str, Config]:
    """Where in a folder or repository the AutoencoderKL lies, and its configuration."""
    others = {}
    for place in ("", "vae") if subfolder is None else (subfolder,):
        name = join(place, "config.json")
        file = source.fetch(name)
        if file is None:
            continue
        config = read_config(file, name)
        if is_autoencoder_kl(config):
            return place, config
        others[name] = config.get("_class_name", "something without a class name")
    source.raise_if_unreachable()

    if others:
        found = " and ".join(f"{name} describes {model}" for name, model in others.items())
        raise UnusableModel(f"only an AutoencoderKL can be trained here, but {found}")
    where = "in it or in its vae/" if subfolder is None else f"in its {subfolder}/"
    raise UnusableModel(
        f"this is not a VAE: there is no config.json {where}; found "
        f"{describe_names(source.listing(), 12)}. Give the folder that save_pretrained wrote, or "
        "one .safetensors or .ckpt file"
    )


def find_weights(source: Source, place: str, variant: str | None) -> list[Path]:
    """The file with the weights, or all that its index names."""
    name = join(place, f"{WEIGHTS}.{variant}" if variant else WEIGHTS)
    suffixes = (".safetensors", ".bin")
    for suffix in suffixes:
        file = source.fetch(name + suffix)
        if file is not None:
            return [file]
    for suffix in suffixes:
        index = join(place, f"{WEIGHTS}{suffix}.index{f'.{variant}' if variant else ''}.json")
        file = source.fetch(index)
        if file is not None:
            return _find_shards(source, place, index, read_config(file, index))
    source.raise_if_unreachable()

    found = [file for file in source.listing() if file.startswith(join(place, ""))]
    fix = "drop --variant" if variant else "a file named *.fp16.* needs --variant=fp16"
    raise UnusableModel(
        f"there is no {name}.safetensors or .bin; found {describe_names(found, 12)} ({fix})"
    )


def _find_shards(source: Source, place: str, index: str, content: Config) -> list[Path]:
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UnusableModel(f"{index} is damaged: it has no weight_map")
    names = sorted(set(map(str, places.values())))
    files = [source.fetch(join(place, name)) if name == Path(name).name else None for name in names]
    source.raise_if_unreachable()
    missing = [name for name, file in zip(names, files, strict=True) if file is None]
    if missing:
        raise UnusableModel(
            f"{index} names {len(names)} files with weights, of which {describe_names(missing)} "
            "cannot be found; download or copy all of them"
        )
    return files
