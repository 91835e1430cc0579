"""What becomes of each flag when a run is resumed with another value: one of three fates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TAKES_EFFECT, WARNED, REFUSED = "takes effect", "warned", "refused"

# (fate, why it is refused or what it leads to, flags)
TABLE = (
    (TAKES_EFFECT, "", """
        cache_dir max_bad_images dataloader_num_workers
        rec_loss kl_scale eq_prob perceptual_scale lpips_backbone lpips_weights
        disc_start disc_warmup_steps disc_ramp_steps disc_factor disc_scale disc_loss
        disc_adaptive_weight disc_weight_max gan_guard
        num_train_epochs max_train_steps learning_rate disc_learning_rate scale_lr lr_scheduler
        disc_lr_scheduler lr_warmup_steps lr_num_cycles lr_power adam_beta1 adam_beta2
        disc_adam_beta1 disc_adam_beta2 adam_weight_decay adam_epsilon max_grad_norm
        ema_half_life ema_decay max_skipped_steps
        mixed_precision allow_tf32 gradient_checkpointing recompute compile perceptual_slice_size
        deterministic ddp_timeout memory_limit_gb set_grads_to_none
        enable_xformers_memory_efficient_attention
        validation_steps validation_batch_size num_grid_images validation_metrics
        inception_weights early_stopping
        output_dir overwrite_output_dir checkpointing_steps checkpoints_total_limit
        resume_from_checkpoint latent_normalization num_latent_images export_ldm export_fp16
        report_to tracker_project_name logging_dir logging_steps push_to_hub hub_model_id push_every
        hub_private hub_license hub_token
    """),
    (REFUSED, "the checkpoint's tensors have other shapes", """
        downsample_factor latent_channels image_mode block_out_channels layers_per_block
        norm_num_groups mid_block_add_attention disc_type disc_norm_type disc_hidden_channels
        disc_num_layers disc_num_groups
    """),
    (REFUSED, "the checkpoint holds the optimizer of other parameters", "decoder_only"),
    (REFUSED, "the checkpoint holds the optimizer's moments in another form", "use_8bit_adam"),
    (REFUSED, "a step number does not tell then how often each network was updated",
     "alternation"),
    (REFUSED, "samples would come in another order", "stream_lanes"),
    (REFUSED, "an average begins with the run and ends with it", "use_ema"),
    (WARNED, "the weights stay the checkpoint's; only the configuration is read from it",
     "pretrained_model_name_or_path model_config_name_or_path revision variant pretrained_weights"),
    (WARNED, "the weights stay the checkpoint's, so it changes nothing any more", "vae_init"),
    (WARNED, "other images, or in another order, from here on; some that are held back for "
     "validation now may have been trained on", """
        dataset_name dataset_weights dataset_config_name data_files train_data_dir train_split
        image_column max_train_samples streaming shuffle_buffer_size
    """),
    (WARNED, "order, crops, noise and the images held back are drawn anew from here on; some that "
     "are held back now may have been trained on", "seed"),
    (WARNED, "training images are prepared differently from here on", """
        resolution train_resolutions aspect_ratio_bucketing crop random_flip interpolation
        min_image_size fast_jpeg_decoding
    """),
    (WARNED, "the place in the data, counted in images, is kept; a step has another number of them",
     "train_batch_size gradient_accumulation_steps"),
    (WARNED, "numbers of validation are those of other images from here on; some of those held "
     "back may have been trained on", """
        validation_image validation_data_dir validation_split num_validation_images
    """),
    (WARNED, "best/ was chosen by the other metric and stays until this one finds better weights",
     "best_metric"),
)  # fmt: skip

FATES = {name: (fate, reason) for fate, reason, names in TABLE for name in names.split()}
NO_FLAG = (REFUSED, "the checkpoint's tensors have other shapes")  # a network's configuration key

# Say where data lie: nothing is to be told where they are the same.
PLACES = ("dataset_name", "data_files", "train_data_dir")
# Change what a validation measures, even on the same files.
MEASURE = ("resolution", "num_validation_images")


def changed_flags(
    before: Mapping[str, Any], now: Mapping[str, Any], fate: str
) -> dict[str, list[Any]]:
    """{name: [before, now]} of what is in both with different values and has this fate."""
    return {
        name: [before[name], value]
        for name, value in now.items()
        if name in before and before[name] != value and FATES.get(name, NO_FLAG)[0] == fate
    }


def reason(name: str) -> str:
    """Why a change of it is refused, or what it leads to."""
    return FATES.get(name, NO_FLAG)[1]


def told(name: str, before: Any, now: Any) -> str:
    """A change, as it is said on resuming."""
    return f"--{name}={shown(now)} (was {shown(before)})"


def shown(value: Any) -> str:
    """A flag's value as it is typed."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
