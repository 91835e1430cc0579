"""Flags that answer the same question: a stronger source's answer replaces a weaker one's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """flags: naming one of them gives this answer. details: belong to one value of these flags.

    manner: whatever the value, makes sense with this answer alone.
    """

    flags: tuple[str, ...]
    details: tuple[str, ...] = ()
    manner: tuple[str, ...] = ()

    @property
    def all(self) -> set[str]:
        """Every flag of it."""
        return {*self.flags, *self.details, *self.manner}


FROM_SCRATCH = ("downsample_factor", "block_out_channels", "layers_per_block", "norm_num_groups",
                "mid_block_add_attention")  # fmt: skip
VALIDATED_ON = ("validation_image", "validation_data_dir", "validation_split")
QUESTIONS = (
    # On which images?
    (Answer(("dataset_name",),
            details=("dataset_weights", "dataset_config_name", "data_files", "train_split",
                     "validation_split"),
            manner=("streaming", "shuffle_buffer_size")),
     Answer(("train_data_dir",))),
    # From which weights?
    (Answer(("pretrained_model_name_or_path",),
            details=("revision", "variant", "pretrained_weights"), manner=("decoder_only",)),
     Answer(("model_config_name_or_path",), details=("revision",), manner=("vae_init",)),
     Answer(FROM_SCRATCH, manner=("vae_init",))),
    # For how long?
    (Answer(("max_train_steps",)), Answer(("num_train_epochs",))),
    # Validated on what?
    tuple(Answer((flag,)) for flag in VALIDATED_ON),
    # What does the backward pass compute again?
    (Answer(("recompute",)), Answer(("gradient_checkpointing",))),
)  # fmt: skip


def overlay(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Both together: what `stronger` names wins, and what of `weaker` it has replaced is gone.

    A flag that is unset or switched off answers nothing.
    """
    named = {name for name, value in stronger.items() if value is not None and value is not False}
    replaced: set[str] = set()
    for question in QUESTIONS:
        given = [answer for answer in question if named & set(answer.flags)]
        if given:
            kept = {flag for answer in given for flag in answer.flags + answer.manner}
            for answer in given:
                if all(weaker.get(flag) == stronger.get(flag) for flag in answer.flags):
                    kept |= answer.all
            replaced |= set().union(*(answer.all for answer in question)) - kept
    if weaker.get("num_validation_images") == 0 and named & set(VALIDATED_ON):
        replaced.add("num_validation_images")  # "on nothing" is an answer, other numbers are none
    return {name: value for name, value in weaker.items() if name not in replaced} | {**stronger}
