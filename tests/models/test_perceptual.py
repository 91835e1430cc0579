"""LPIPS stays what it is: frozen, in eval mode, in float32."""

from __future__ import annotations

from pathlib import Path

import lpips
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from modules.errors import ArgumentError
from modules.models.lpips import WIDTHS, build_lpips

NETWORKS = {
    "vgg": torchvision.models.vgg16,
    "alex": torchvision.models.alexnet,
    "squeeze": torchvision.models.squeezenet1_1,
}


def backbone_file(name: str, folder: Path) -> str:
    """Random weights of a backbone's convolutions, named as torchvision names them."""
    torch.manual_seed(0)
    with torch.device("meta"):
        features = NETWORKS[name](weights=None).features
    state = features.to_empty(device="cpu").state_dict()
    state = {f"features.{key}": 0.05 * torch.randn_like(value) for key, value in state.items()}
    save_file(state, folder / f"{name}.safetensors")
    return str(folder / f"{name}.safetensors")


@pytest.mark.parametrize("name", WIDTHS)
def test_local_backbone_gives_what_the_lpips_package_gives(name: str, tmp_path: Path) -> None:
    file = backbone_file(name, tmp_path)
    ours = build_lpips(name, file)
    theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False).eval()
    source = ours.network.net.state_dict()
    theirs.net.load_state_dict(source)
    images, others = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(ours(images, others), theirs(images, others).flatten())
    assert ours(images, others).shape == (2,)
    assert (ours(images, images) == 0).all()


def test_distance_stays_float32_in_eval_mode_and_without_gradients_of_its_own(
    tmp_path: Path,
) -> None:
    network = build_lpips("squeeze", backbone_file("squeeze", tmp_path))
    parent = torch.nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    images, others = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    others.requires_grad_()
    plain = network(images, others)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(parent[0](images, others), plain)
    assert torch.equal(network(images, others), plain)  # no dropout
    plain.sum().backward()
    assert others.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())


def test_wrong_files_are_refused_by_flag(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="does not exist"):
        build_lpips("squeeze", str(tmp_path / "missing.pth"))
    with pytest.raises(ArgumentError, match="is not torchvision's squeeze state dict"):
        build_lpips("squeeze", backbone_file("alex", tmp_path))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArgumentError, match="--lpips_weights"):
        build_lpips("squeeze", str(tmp_path / "bad.safetensors"))
    with pytest.raises(ArgumentError, match="--lpips_backbone=resnet"):
        build_lpips("resnet")


def test_failed_download_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(lpips, "LPIPS", offline)
    with pytest.raises(ArgumentError, match=r"--lpips_weights FILE.*--perceptual_scale 0"):
        build_lpips("vgg")


def test_slices_give_the_same_distances_and_gradients(tmp_path: Path) -> None:
    file = backbone_file("squeeze", tmp_path)
    images, others = torch.rand(2, 5, 3, 64, 64) * 2 - 1
    results = []
    for size in (None, 1, 2):
        leaf = others.clone().requires_grad_()
        distances = build_lpips("squeeze", file, size)(images, leaf)
        distances.square().mean().backward()
        results.append((distances.detach(), leaf.grad))
    reference = build_lpips("squeeze", file).network
    leaf = others.clone().requires_grad_()
    reference(images, leaf).flatten().square().mean().backward()
    for distances, gradient in results:
        torch.testing.assert_close(distances, results[0][0])
        torch.testing.assert_close(gradient, leaf.grad)
