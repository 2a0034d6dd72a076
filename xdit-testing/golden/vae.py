"""A tiny image decoder: 8 pixels per latent."""

from pathlib import Path

import torch
from common import hook, randomise, under
from diffusers import AutoencoderKL

TILE = 64
FLUX = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
        "use_post_quant_conv": False}
SDXL = {"latent_channels": 4, "scaling_factor": 0.13025}


def build(folder: Path, channels: tuple[int, ...], layers: int, kind: dict = FLUX) -> None:
    vae = randomise(AutoencoderKL(
        block_out_channels=channels, down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=layers, norm_num_groups=4, sample_size=64, **kind))
    # pictures are cut to -1..1: most of the values should survive that
    vae.decoder.conv_out.weight.data *= 0.4
    vae.save_pretrained(folder)


def goldens(folder: Path, size: tuple[int, int] = (6, 10), tiled: tuple[int, int] = (12, 20)) -> dict[str, torch.Tensor]:
    vae = AutoencoderKL.from_pretrained(folder).eval()
    channels = vae.config.latent_channels
    latent = torch.randn(1, channels, *size)
    parts = {"latent": latent}
    if vae.post_quant_conv is not None:
        hook(parts, "post_quant_conv", vae.post_quant_conv)
    hook(parts, "conv_in", vae.decoder.conv_in)
    hook(parts, "mid", vae.decoder.mid_block)
    for i, block in enumerate(vae.decoder.up_blocks):
        hook(parts, f"up.{i}", block)
    parts["out"] = vae.decode(latent, return_dict=False)[0]

    # tiles of 8 x 8 latents, 6 apart: of 12 x 20 latents 2 x 4 of them, of which the last ones of a row are 2 wide
    vae = AutoencoderKL.from_pretrained(folder).eval()
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size, vae.tile_overlap_factor = TILE, TILE // 8, 0.25
    latent = torch.randn(1, channels, *tiled)
    parts |= {
        "tiled.latent": latent, "tiled.out": vae.decode(latent, return_dict=False)[0],
        "tiled.tile_sample_min_size": torch.tensor(TILE), "tiled.tile_latent_min_size": torch.tensor(TILE // 8),
        "tiled.tile_overlap_factor": torch.tensor(0.25),
    }
    return under("vae", parts)
