"""What the latents of models look like, and how a diffusion model should normalise them.

Mean, standard deviation, KL and covariance of each channel, the power spectrum, dead channels, and
the scaling_factor (or shift_factor, latents_mean, latents_std) that bring the latents to unit
scale; --write puts them into the model's config.json.
"""

from __future__ import annotations

import argparse

from eval.commands import common

HELP = "moments, KL, dead channels, spectrum; the right scaling_factor"
KINDS = ("scale", "scale_shift", "per_channel")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    common.add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--normalization",
        choices=KINDS,
        default="scale",
        help="scale: scaling_factor = 1 / std of all latents; scale_shift: shift_factor as well; "
        "per_channel: latents_mean and latents_std",
    )
    add("--write", action="store_true", help="write the normalization into config.json")
    common.add_data_arguments(parser, num_images=1000)
    common.add_run_arguments(parser)
    add = parser.add_argument_group("Output").add_argument
    add("--json", metavar="FILE", help="everything measured")


def run(args: argparse.Namespace) -> int:
    """Measures each model, prints and writes what was found."""
    from eval.protocol.latents import measure_latents
    from eval.report.latents import print_latents
    from eval.report.outputs import write_json
    from modules.distributed.reduce import process_index_and_count
    from modules.weights.config_file import config_path, update_config

    codecs, images = common.open_inputs(args)
    # Before the work, so that nothing is measured in vain.
    files = [config_path(name) for name in args.model] if args.write else []
    with common.device_and_processes(args) as device:
        found = {
            label: measure_latents(codec.vae, images, device=device, **common.loading(args))
            for label, codec in codecs.items()
        }
        if process_index_and_count()[0] != 0:
            return 0
    entries = {label: measured.normalization(args.normalization)
               for label, measured in found.items()}  # fmt: skip
    factors = {label: codec.vae.config.scaling_factor for label, codec in codecs.items()}
    print_latents(found, factors, entries)
    print(f"\nData: {images.describe()}")
    for file, entry in zip(files, entries.values(), strict=bool(files)):
        changes = [f"{name} {before} -> {after}"
                   for name, (before, after) in update_config(file, entry).items()]  # fmt: skip
        print(f"Wrote {file}: {', '.join(changes) or 'nothing had to change'}")
    models = {label: {**measured.to_dict(), "normalization": entries[label]}
              for label, measured in found.items()}  # fmt: skip
    write_json(args.json, {"models": models, **images.stamp()})
    return 0
