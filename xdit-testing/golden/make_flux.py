"""Two tiny Flux pipelines with random weights, and what every part of them puts out in diffusers.

    pip install torch diffusers transformers sentencepiece protobuf
    python xdit-testing/golden/make_flux.py

Weights, norms and biases are all random, so that a swapped pair of them (shift and scale, queries and keys, the order of
heads) shows. Folders look like the published ones: `flux-dev` is sharded and has `spiece.model` alone for T5, `flux-schnell`
has `tokenizer.json` for both tokenizers. README.md says what the keys of the golden files mean.
"""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

HERE = Path(__file__).parent
WORDS = (
    "a photo of an astronaut riding a horse on the moon, a cat with a red hat and the blue sky over mountains; "
    "painting in the style of old masters, highly detailed, soft light at sunrise, small house near a lake, two dogs "
    "playing in green grass, portrait of a woman, 35mm, bokeh, the quick brown fox jumps over the lazy dog"
)
PROMPTS = {
    "plain": "a photo of a red cat",
    "upper": "A Photo Of An ASTRONAUT, riding!! (a horse)",
    "punctuation": "it's the dog's 2nd house -- isn't it? #1 [x] {y} a_b",
    "accents": "un café à Zürich, señor, naïve Ångström",
    "cjk": "一只红色的猫 and 日本語 🐈‍⬛ emoji",
    "spaces": "  a   cat \t on\na  mat  ",
    "special": "a <|endoftext|> cat </s> and <pad> dog",
    "empty": "",
    "long": "a cat and a dog and " * 40,
}


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level BPE as CLIP's: 256 bytes, 256 bytes at a word's end, merges, two special tokens."""
    folder.mkdir(parents=True)
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  end_of_word_suffix="</w>", show_progress=False)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.train_from_iterator([w for w in WORDS.split() for _ in range(3)], trainer)
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = alphabet + [c + "</w>" for c in alphabet] + ["".join(m.split()) for m in merges]
    vocab = list(dict.fromkeys(vocab)) + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocab)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    end = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
           "unk_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**end, "model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(end))
    return CLIPTokenizer.from_pretrained(folder)


def t5_tokenizer(folder: Path) -> T5Tokenizer:
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS, *WORDS.split(", ")] * 4), model_writer=model, vocab_size=190,
        hard_vocab_limit=False, normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2)
    (folder / "spiece.model").write_bytes(model.getvalue())
    end = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**end, "extra_ids": 100, "model_max_length": 512, "tokenizer_class": "T5Tokenizer"}))
    (folder / "special_tokens_map.json").write_text(json.dumps(end))
    return T5Tokenizer.from_pretrained(folder)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Everything random, norms around 1, of a size that keeps activations near 1."""
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        if p.ndim == 1:
            p.data = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            p.data = noise * (1.2 / np.sqrt(p[0].numel()))
    return model.eval()


def build(name: str, dev: bool) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(1 if dev else 2)
    tokenizer, tokenizer_2 = clip_tokenizer(folder / "tokenizer"), t5_tokenizer(folder / "tokenizer_2")
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        # 2 is what old configurations say, whatever the vocabulary; it selects another rule for the pooled vector
        eos_token_id=2 if dev else tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        projection_dim=32))
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(tokenizer_2) + 7, d_model=40, d_kv=12, d_ff=56, num_layers=2, num_heads=3,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        relative_attention_num_buckets=8 if dev else 32, relative_attention_max_distance=20 if dev else 128))
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2 if dev else 3, attention_head_dim=16 if dev else 24,
        num_attention_heads=4 if dev else 2, joint_attention_dim=40, pooled_projection_dim=32, guidance_embeds=dev,
        axes_dims_rope=(4, 6, 6) if dev else (4, 8, 12))
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16, 16) if dev else (4, 8, 12, 16), down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=1 if dev else 2, latent_channels=16,
        norm_num_groups=4 if dev else 2, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False, sample_size=64)
    for model in (clip, t5, transformer, vae):
        randomise(model)
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=dev, shift=3.0 if dev else 1.0, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
        max_image_seq_len=4096)
    for part, model in {"text_encoder": clip, "text_encoder_2": t5, "vae": vae, "scheduler": scheduler}.items():
        model.save_pretrained(folder / part)
    transformer.save_pretrained(folder / "transformer", max_shard_size="300KB" if dev else "10GB")
    if not dev:
        tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer_2.save_pretrained(folder / "tokenizer_2")
    index = {
        "_class_name": "FluxPipeline", "_diffusers_version": "0.30.0",
        "feature_extractor": [None, None], "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def hook(out: dict, key: str, module: torch.nn.Module) -> None:
    def save(_module, _args, output):
        parts = output if isinstance(output, tuple) else (output,)
        for i, part in enumerate(parts):
            if isinstance(part, torch.Tensor):
                out[key if len(parts) == 1 else f"{key}.{i}"] = part.detach().clone()

    module.register_forward_hook(save)


@torch.no_grad()
def goldens(name: str, dev: bool) -> None:
    pipe = FluxPipeline.from_pretrained(build(name, dev))
    pipe.set_progress_bar_config(disable=True)
    out: dict[str, torch.Tensor] = {}

    for key, prompt in PROMPTS.items():
        clip = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        t5 = pipe.tokenizer_2(prompt, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
        out[f"ids.clip.{key}"], out[f"ids.t5.{key}"] = clip.input_ids, t5.input_ids
        if key in ("plain", "long"):
            states = pipe.text_encoder(clip.input_ids, output_hidden_states=True)
            for i, state in enumerate(states.hidden_states):
                out[f"clip.{key}.hidden.{i}"] = state
            out[f"clip.{key}.last"], out[f"clip.{key}.pooled"] = states.last_hidden_state, states.pooler_output
            states = pipe.text_encoder_2(t5.input_ids, output_hidden_states=True)
            for i, state in enumerate(states.hidden_states):
                out[f"t5.{key}.hidden.{i}"] = state

    # the transformer: a batch of two, a picture of 5 x 3 tokens, 9 text tokens
    transformer = FluxTransformer2DModel.from_pretrained(HERE / name / "transformer")
    grid = FluxPipeline._prepare_latent_image_ids(2, 5, 3, "cpu", torch.float32)
    inputs = {
        "hidden_states": torch.randn(2, 15, 64), "encoder_hidden_states": torch.randn(2, 9, 40),
        "pooled_projections": torch.randn(2, 32),
    }
    parts: dict[str, torch.Tensor] = {}
    hook(parts, "temb", transformer.time_text_embed)
    hook(parts, "img", transformer.x_embedder)
    hook(parts, "txt", transformer.context_embedder)
    hook(parts, "rope", transformer.pos_embed)
    for i, block in enumerate([*transformer.transformer_blocks, *transformer.single_transformer_blocks]):
        hook(parts, f"block.{i}", block)
    parts["out"] = transformer(**inputs, timestep=torch.tensor([0.7, 0.7]), img_ids=grid, txt_ids=torch.zeros(9, 3),
                               guidance=torch.tensor([3.5, 3.5]) if dev else None, return_dict=False)[0]
    out |= {f"transformer.{k}": v for k, v in {**inputs, **parts}.items()}

    # schedules, as the pipeline asks for them and as the options change them
    variants = {
        "own": {}, "shift3": {"use_dynamic_shifting": False, "shift": 3.0}, "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True}, "linear": {"time_shift_type": "linear"},
        "terminal": {"shift_terminal": 0.1}, "inverted": {"invert_sigmas": True},
    }
    for variant, options in variants.items():
        for steps, tokens in ((1, 256), (4, 15), (28, 4096)):
            scheduler = FlowMatchEulerDiscreteScheduler.from_config({**pipe.scheduler.config, **options})
            mu = calculate_shift(tokens, 256, 4096, 0.5, 1.15)
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
            key = f"schedule.{variant}.{steps}.{tokens}"
            out[f"{key}.sigmas"], out[f"{key}.timesteps"] = scheduler.sigmas, scheduler.timesteps
            if not scheduler.config.use_dynamic_shifting:
                scheduler.set_timesteps(steps)
                out[f"{key}.even"] = scheduler.sigmas
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.25, 4), mu=calculate_shift(15, 256, 4096, 0.5, 1.15))
    x = torch.randn(1, 15, 64)
    out["step.start"] = x
    for i, t in enumerate(scheduler.timesteps):
        v = torch.randn(1, 15, 64)
        x = scheduler.step(v, t, x, return_dict=False)[0]
        out[f"step.{i}.prediction"], out[f"step.{i}.out"] = v, x

    vae = AutoencoderKL.from_pretrained(HERE / name / "vae")
    latent = torch.randn(1, 16, 6, 10)
    parts = {}
    hook(parts, "conv_in", vae.decoder.conv_in)
    hook(parts, "mid", vae.decoder.mid_block)
    for i, block in enumerate(vae.decoder.up_blocks):
        hook(parts, f"up.{i}", block)
    parts["out"] = vae.decode(latent, return_dict=False)[0]
    out |= {f"vae.{k}": v for k, v in {"latent": latent, **parts}.items()}
    tiled = AutoencoderKL.from_pretrained(HERE / name / "vae")
    tiled.enable_tiling()
    tiled.tile_sample_min_size, tiled.tile_latent_min_size = 64, 8
    latent = torch.randn(1, 16, 12, 20)
    out["vae.tiled.latent"], out["vae.tiled.out"] = latent, tiled.decode(latent, return_dict=False)[0]

    # prompt to pixels
    cases = {
        "default": {"prompt": PROMPTS["plain"]},
        "long": {"prompt": PROMPTS["long"], "seed": 7},
        "cfg": {"prompt": PROMPTS["upper"], "negative_prompt": "a blue dog", "true_cfg_scale": 2.5},
        "wide": {"prompt": PROMPTS["cjk"], "height": 32, "width": 112, "seed": 2**32 + 3},
    }
    if dev:
        cases["guidance"] = {"prompt": PROMPTS["plain"], "guidance_scale": 7.0}
    for key, case in cases.items():
        case = {"height": 96, "width": 64, "num_inference_steps": 3, "max_sequence_length": 32, "guidance_scale": 3.5,
                "seed": 42, **case}
        cases[key] = case
        arguments = {k: v for k, v in case.items() if k != "seed"}
        for kind in ("latent", "pt"):
            generator = torch.Generator("cpu").manual_seed(case["seed"])
            result = pipe(**arguments, generator=generator, output_type=kind).images
            out[f"pipeline.{key}.{kind}"] = result
    (HERE / f"{name}.cases.json").write_text(json.dumps(cases, indent=2, ensure_ascii=False) + "\n")
    save_file({k: v.contiguous() for k, v in out.items()}, HERE / f"{name}.golden.safetensors")


torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
goldens("flux-dev", dev=True)
goldens("flux-schnell", dev=False)
(HERE / "prompts.json").write_text(json.dumps(PROMPTS, indent=2, ensure_ascii=False) + "\n")
