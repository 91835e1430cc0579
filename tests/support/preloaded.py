"""What every launch would do anew: the server of launches imports it, and processes inherit it."""

# ruff: noqa: F401
from __future__ import annotations

import gc

gc.disable()  # nothing below is rubbish

import scipy.linalg
import torch._dynamo
import torch.utils.tensorboard
from PIL import Image

import train_vae
from eval.report.page import FOLDER, _environment

Image.init()
for template in FOLDER.glob("*.html"):
    _environment().get_template(template.name)

gc.freeze()  # or each process would look through all of it, which takes half a second
gc.enable()
