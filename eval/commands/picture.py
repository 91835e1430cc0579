"""One picture through a model: IN is encoded and decoded, and OUT is what comes back.

Any size: the sides are continued by reflection to multiples of the model's factor, and cut again
afterwards. The latents are the posterior's mode, unscaled; --latents writes them, and what scales
them, to a file, and --from_latents decodes such a file instead of IN.
"""

from __future__ import annotations

import argparse

from eval.commands import common
from eval.commands.checks import integer

HELP = "one picture of any size, encoded and decoded; its latents as a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("picture", nargs="?", metavar="IN", help="picture to encode; none with --from_latents")
    add("out", metavar="OUT", help="picture to write, such as out.png")
    common.add_model_arguments(parser, nargs=None)
    add("--latents", metavar="FILE", help="write the latents too, as safetensors")
    add("--from_latents", metavar="FILE", help="decode these latents")
    add(
        "--tile",
        type=integer(1, 16384),
        help="work in tiles of so many pixels: large pictures in less memory, nearly the same",
    )
    common.add_device_argument(add)


def run(args: argparse.Namespace) -> int:
    """Writes what the model makes of the picture or of the latents; says its PSNR."""
    from eval.metrics.image import mean_squared_error, psnr
    from eval.protocol import one_picture
    from eval.protocol.codecs import VAECodec, all_prepared, quantize
    from modules.data.images.images import decode, to_uint8_tensor
    from modules.errors import blaming
    from modules.image_modes import in_mode, mode_of, over_views, to_picture

    if bool(args.picture) == bool(args.from_latents):
        raise ValueError("give IN and OUT, or --from_latents FILE and OUT")
    original = None
    if args.picture:
        with blaming(f"IN={args.picture}", "give another picture"):
            original = decode(args.picture)
    codec = VAECodec.open(args.model, args.pretrained_weights)
    vae, mode = codec.vae, mode_of(codec.vae)
    one_picture.require_kind(args.out, mode)
    if args.tile:
        one_picture.use_tiles(vae, args.tile, codec.factor)
    with common.device_and_processes(args) as device, all_prepared([codec], device):
        if original is None:
            latents, (height, width) = one_picture.read_latents(args.from_latents, codec)
        else:
            original = to_uint8_tensor(in_mode(original, mode))
            height, width = original.shape[1:]
            latents = one_picture.encode(codec, original, device)
        values = vae.decode(latents.to(device)).sample[..., :height, :width].cpu()
    if not values.isfinite().all():
        raise ValueError(f"--model={args.model} gives NaN or infinity for this picture")
    result = quantize(values, "nearest")
    if args.latents:
        one_picture.save_latents(args.latents, latents, vae, (height, width))
        print(f"Wrote {args.latents}: {list(latents.shape)}, unscaled")
    to_picture(result[0]).save(args.out)
    print(f"Wrote {args.out}: {width} x {height}")
    if original is not None:
        db = psnr(over_views(mean_squared_error, original[None], result)).item()
        print(f"PSNR {db:.2f} dB")
    return 0
