"""python -m eval COMMAND ...: measures image autoencoders.

python -m eval reconstruction --model runs/mine jpeg:50 downsample:8 --data photos/
python -m eval latents --model runs/mine --data photos/ --write
python -m eval precision --model runs/mine --data photos/
python -m eval export --model runs/mine --output runs/mine --format fp16 ldm onnx
torchrun --nproc_per_node 2 -m eval reconstruction --model runs/mine --data photos/
python -m eval benchmark --recipe 8gb --compare textbook --random_lpips
python -m eval memory --recipe 8gb
python -m eval quality --arm "a:" --arm "b: --rec_loss l1" --output_dir runs/arms --recipe ...
python -m eval loader
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from eval import commands
from eval.commands.checks import check_texts, prepare_outputs
from eval.report.terminal import print_help
from modules.config.answers import Answer, answer_to
from modules.config.terminal import leave_when_interrupted, outlive_the_terminal
from modules.errors import one_line


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        unset = action.default in (None, [])
        return action.help if unset else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """argparse that says what is wrong without its usage in front of it."""

    def print_help(self, file: object = None) -> None:
        del file
        print_help(self.format_help())

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def command_modules() -> dict[str, ModuleType]:
    """Every file of eval/commands that defines a command, by name; none of them imports torch."""
    names = [entry.name for entry in pkgutil.iter_modules(commands.__path__)]
    modules = {name: importlib.import_module(f"eval.commands.{name}") for name in sorted(names)}
    return {name: module for name, module in modules.items() if hasattr(module, "run")}


def build_parser() -> argparse.ArgumentParser:
    """The parser with one subparser for each command."""
    parser = _Parser(
        prog="python -m eval",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in command_modules().items():
        subparser = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=_Defaults,
            allow_abbrev=False,  # --resolution is the script's, --resolutions a command's
        )
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if all is well, 2 for what the user must mend, 1 as the command says."""
    parser = build_parser()
    args, training_flags = parser.parse_known_args(argv)
    if hasattr(args, "training_flags"):
        args.training_flags = training_flags  # checked by the command, as the script does
    elif training_flags:
        parser.error(f"unrecognized arguments: {' '.join(training_flags)}")
    try:
        check_texts(args)
        prepare_outputs(args)
        return args.run(args)
    except Exception as error:
        answer = answer_to(error, "start again")
        if answer is None and isinstance(error, ValueError):
            answer = Answer(2, one_line(error))
        if answer is None:
            raise
        print(f"python -m eval {args.command}: error: {answer.message}", file=sys.stderr)
        return answer.code


if __name__ == "__main__":
    outlive_the_terminal()
    leave_when_interrupted("python -m eval: interrupted")
    sys.exit(main())
