"""How many parameters the published models have, as diffusers and transformers count them from the configurations.

    python xdit-testing/golden/parameter_counts.py

Writes `parameter_counts.json`. Models are built on torch's meta device, which has shapes and no numbers: no weights are
needed, and it takes a minute. The configurations are those of the repositories on the Hub, less what does not matter here.
"""

import json
from pathlib import Path

import diffusers
import torch
import transformers

FLUX = {
    "patch_size": 1, "in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "axes_dims_rope": [16, 56, 56],
}
SD3 = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24, "attention_head_dim": 64,
    "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 192,
}
PIXART = {
    "activation_fn": "gelu-approximate", "attention_bias": True, "attention_head_dim": 72, "attention_type": "default",
    "caption_channels": 4096, "cross_attention_dim": 1152, "dropout": 0.0, "in_channels": 4,
    "norm_elementwise_affine": False, "norm_eps": 1e-06, "norm_num_groups": 32, "norm_type": "ada_norm_single",
    "num_attention_heads": 16, "num_embeds_ada_norm": 1000, "num_layers": 28, "out_channels": 8, "patch_size": 2,
    "sample_size": 128, "upcast_attention": False,
}
HUNYUAN = {
    "activation_fn": "gelu-approximate", "attention_head_dim": 88, "cross_attention_dim": 1024,
    "cross_attention_dim_t5": 2048, "hidden_size": 1408, "in_channels": 4, "learn_sigma": True, "mlp_ratio": 4.3637,
    "norm_type": "layer_norm", "num_attention_heads": 16, "num_layers": 40, "patch_size": 2,
    "pooled_projection_dim": 1024, "sample_size": 128, "text_len": 77, "text_len_t5": 256,
}
CLIP = {
    "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "vocab_size": 49408,
}
BIG_G = {"hidden_act": "gelu", "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
         "num_hidden_layers": 32, "projection_dim": 1280}
T5 = {
    "d_ff": 10240, "d_kv": 64, "d_model": 4096, "decoder_start_token_id": 0, "dropout_rate": 0.1, "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": True, "layer_norm_epsilon": 1e-06, "num_decoder_layers": 24,
    "num_heads": 64, "num_layers": 24, "pad_token_id": 0, "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32, "tie_word_embeddings": False, "vocab_size": 32128,
}
MT5 = {"d_ff": 5120, "d_model": 2048, "num_heads": 32, "vocab_size": 250112}
BERT = {
    "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 1024,
    "intermediate_size": 4096, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_attention_heads": 16,
    "num_hidden_layers": 24, "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 47020,
}
VAE = {
    "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
    "sample_size": 1024, "up_block_types": ["UpDecoderBlock2D"] * 4,
}
WITHOUT_QUANTISATION = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

# name: library, class, configuration
MODELS = {
    "flux-dev.transformer": (diffusers, "FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}),
    "flux-schnell.transformer": (diffusers, "FluxTransformer2DModel", {**FLUX, "guidance_embeds": False}),
    "sd3-medium.transformer": (diffusers, "SD3Transformer2DModel", SD3),
    "sd3.5-medium.transformer": (diffusers, "SD3Transformer2DModel", {
        **SD3, "dual_attention_layers": list(range(13)), "pos_embed_max_size": 384, "qk_norm": "rms_norm"}),
    "sd3.5-large.transformer": (diffusers, "SD3Transformer2DModel", {
        **SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}),
    # resolution and aspect ratio are embedded if that is not said and the size is 128
    "pixart-alpha-1024.transformer": (diffusers, "PixArtTransformer2DModel", PIXART),
    "pixart-sigma-1024.transformer": (diffusers, "PixArtTransformer2DModel", {
        **PIXART, "interpolation_scale": 2, "use_additional_conditions": False}),
    "hunyuan-v1.1.transformer": (diffusers, "HunyuanDiT2DModel", {
        **HUNYUAN, "use_style_cond_and_image_meta_size": True}),
    "hunyuan-v1.2.transformer": (diffusers, "HunyuanDiT2DModel", {
        **HUNYUAN, "use_style_cond_and_image_meta_size": False}),
    "clip-l": (transformers, "CLIPTextModel", CLIP),
    "clip-l.projection": (transformers, "CLIPTextModelWithProjection", CLIP),
    "clip-big-g.projection": (transformers, "CLIPTextModelWithProjection", {**CLIP, **BIG_G}),
    "t5-v1.1-xxl.encoder": (transformers, "T5EncoderModel", T5),
    "hunyuan.bert": (transformers, "BertModel", BERT),
    "hunyuan.mt5-xl.encoder": (transformers, "T5EncoderModel", {**T5, **MT5}),
    "flux.vae": (diffusers, "AutoencoderKL", {
        **VAE, **WITHOUT_QUANTISATION, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
    "sd3.vae": (diffusers, "AutoencoderKL", {
        **VAE, **WITHOUT_QUANTISATION, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "sdxl.vae": (diffusers, "AutoencoderKL", {**VAE, "scaling_factor": 0.13025}),
    "sd1.5.vae": (diffusers, "AutoencoderKL", {**VAE, "scaling_factor": 0.18215, "sample_size": 512}),
}
# parts of a checkpoint that have a count of their own, because text to image needs them alone or not at all
PARTS = {
    "AutoencoderKL": {"decoder": ("decoder.",), "decoder and post_quant_conv": ("decoder.", "post_quant_conv.")},
    "BertModel": {"pooler": ("pooler.",)},
    "CLIPTextModelWithProjection": {"text_projection": ("text_projection.",)},
}


def build(library, name: str, config: dict) -> torch.nn.Module:
    of = getattr(library, name)
    if library is diffusers:
        with torch.device("meta"):
            model = of(**config)
        # an option that a class ignores would count as nothing
        assert config.keys() <= model.config.keys(), name
        return model
    config = of.config_class(**config)
    with torch.device("meta"):
        return of(config)


def main() -> None:
    models = {}
    for key, (library, name, config) in MODELS.items():
        model = build(library, name, config)
        sizes = {n: x.numel() for n, x in model.named_parameters()}
        # tables that are in checkpoints and not learned
        saved = model.state_dict()
        buffers = {n: x.numel() for n, x in model.named_buffers() if n in saved}
        parts = {part: sum(n for x, n in sizes.items() if x.startswith(prefixes))
                 for part, prefixes in PARTS.get(name, {}).items()}
        models[key] = {
            "library": library.__name__, "class": name, "config": config, "parameters": sum(sizes.values()),
            "tensors": len(sizes), "buffers": buffers, "parts": parts,
        }
        print(f"{key}: {models[key]['parameters']:,} {models[key]['parts'] or ''} {buffers or ''}")
    made_with = {m.__name__: m.__version__.split("+")[0] for m in (torch, diffusers, transformers)}
    path = Path(__file__).resolve().parent / "parameter_counts.json"
    path.write_text(json.dumps({"made_with": made_with, "models": models}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
