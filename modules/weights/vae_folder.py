"""Where an AutoencoderKL lies in a folder or repository that diffusers, or its users, laid out."""

from __future__ import annotations

from pathlib import Path
from posixpath import join

from modules.weights.model_config import Config, is_autoencoder_kl, parse_config
from modules.weights.sources import Source
from modules.weights.tensor_files import UnusableModel
from modules.weights.vae_selection import describe_names

WEIGHTS = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".bin")


def find_config(source: Source) -> tuple[str, Config]:
    """Where the AutoencoderKL lies, "" or a pipeline's "vae", and its configuration."""
    others = {}
    for place in ("", "vae"):
        name = join(place, "config.json")
        file = source.fetch(name)
        if file is None:
            continue
        config = parse_config(file.read_bytes(), name)
        if is_autoencoder_kl(config):
            return place, config
        others[name] = config.get("_class_name", "something without a class name")

    present = source.listing()
    if others:
        found = " and ".join(f"{name} describes {model}" for name, model in others.items())
        raise UnusableModel(f"only an AutoencoderKL can be trained here, but {found}")
    raise UnusableModel(
        "this is not a VAE: there is no config.json in it or in its vae/; found "
        f"{describe_names(present, 12)}. Give the folder that save_pretrained wrote, or one "
        ".safetensors or .ckpt file"
    )


def find_weights(source: Source, place: str, variant: str | None) -> list[Path]:
    """The file with the weights, or all that its index names."""
    name = join(place, f"{WEIGHTS}.{variant}" if variant else WEIGHTS)
    for suffix in SUFFIXES:
        file = source.fetch(name + suffix)
        if file is not None:
            return [file]
    for suffix in SUFFIXES:
        index = join(place, f"{WEIGHTS}{suffix}.index{f'.{variant}' if variant else ''}.json")
        file = source.fetch(index)
        if file is not None:
            return _find_shards(source, place, index, parse_config(file.read_bytes(), index))

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
    files = {name: source.fetch(join(place, name)) for name in names if name == Path(name).name}
    missing = [name for name in names if files.get(name) is None]
    if missing:
        source.listing()  # which explains it where the Hub could not be asked
        raise UnusableModel(
            f"{index} names {len(names)} files with weights, of which {describe_names(missing)} "
            "cannot be found; download or copy all of them"
        )
    return [*files.values()]
