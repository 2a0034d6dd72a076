"""Trains the built-in model, a tiny Flux that draws the scenes of `scenes.py`, and writes it as a diffusers folder.

    python train.py --out FOLDER --minutes 9

Everything is learned here from nothing: two tokenizers, a VAE, CLIP, and then T5 and the transformer together. The time
is shared out between the stages, so the same command makes a weaker model on a slower machine rather than a late one.
`--resume` goes on from a folder written before, with its tokenizers and its VAE as they are.
"""

import argparse
import json
import math
import os
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import scenes as world

LATENT_CHANNELS = 16
START = time.time()


@dataclass(frozen=True)
class Preset:
    """One size of the model, and what it learns to draw."""

    side: int
    clip_length: int
    t5_length: int
    text_width: int
    heads: int
    head_width: int
    rope: tuple
    vae_channels: tuple
    # Side of the squares that the VAE learns from, cut out of whole pictures.
    crop: int
    grammar: world.Part


PRESETS = {
    # One or two shapes, for a GPU.
    "full": Preset(
        256,
        77,
        48,
        128,
        8,
        24,
        (4, 10, 10),
        (16, 32, 64, 64),
        128,
        world.part(["red", "yellow", "green", "blue", "purple", "white", "black"], ["circle", "square", "triangle"]),
    ),
    # What two processor cores learn within the hour.
    "small": Preset(
        128,
        32,
        24,
        64,
        8,
        16,
        (4, 6, 6),
        (16, 16, 32, 32),
        64,
        world.part(["red", "yellow", "green", "blue", "white", "black"], ["circle", "square", "triangle"], ["one"]),
    ),
}


def vae_config(preset):
    """The VAE's configuration: Flux's, in small."""
    return dict(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=preset.vae_channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=preset.side,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=False,
    )


def transformer_config(preset):
    """The transformer's configuration: Flux's, in small and without guidance to be distilled."""
    return dict(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=4,
        num_single_layers=4,
        attention_head_dim=preset.head_width,
        num_attention_heads=preset.heads,
        joint_attention_dim=preset.text_width,
        pooled_projection_dim=preset.text_width,
        guidance_embeds=False,
        axes_dims_rope=preset.rope,
    )


# Flux's schedule with more of its steps at high noise, where this model decides what stands where: `mu` is 1.1 above Flux's.
# A picture of 256 tokens is at its lower end, where `mu` is `base_shift`.
SCHEDULER = dict(
    num_train_timesteps=1000,
    shift=3.0,
    use_dynamic_shifting=True,
    base_shift=1.6,
    max_shift=2.25,
    base_image_seq_len=256,
    max_image_seq_len=4096,
)
STEPS = 28
# Flux's `mu`, by which the noise levels of the training are spread.
TRAINING_SHIFT = 0.5


def say(*words):
    """A line of the log, stamped with the seconds since the start."""
    print(f"[{time.time() - START:6.1f}]", *words, flush=True)


# ---------------------------------------------------------------------------------------------------- tokenizers


def byte_letters():
    """The printable stand-ins of the 256 bytes, in the order of CLIP's vocabulary (GPT-2's table)."""
    table = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in table]
    return letters + [chr(256 + extra) for extra in range(256 - len(table))]


def write_clip_tokenizer(folder, words, length):
    """A byte-level BPE like CLIP's. Every byte is in it, alone and as a word's end, so any text can be encoded."""
    letters = byte_letters()
    vocabulary = letters + [letter + "</w>" for letter in letters]
    # `words` are plain ASCII, whose bytes stand for themselves.
    parts = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges = []
    while True:
        pairs = Counter()
        for word, pieces in parts.items():
            for pair in zip(pieces, pieces[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        # The commonest pair; of equals the first in the alphabet, so that a second run makes the same tokenizer.
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        vocabulary.append(left + right)
        for word, pieces in parts.items():
            merged = []
            for piece in pieces:
                if merged and merged[-1] == left and piece == right:
                    merged[-1] = left + right
                else:
                    merged.append(piece)
            parts[word] = merged
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/vocab.json", "w") as file:
        json.dump({piece: index for index, piece in enumerate(vocabulary)}, file, ensure_ascii=False)
    with open(f"{folder}/merges.txt", "w") as file:
        file.write("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    special |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_json(f"{folder}/special_tokens_map.json", special)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True}
    config |= {"add_prefix_space": False, "errors": "replace", "clean_up_tokenization_spaces": True}
    write_json(f"{folder}/tokenizer_config.json", config | special)


def write_t5_tokenizer(folder, lines):
    """A sentencepiece unigram model with T5's special tokens, and the same as `tokenizer.json`."""
    import sentencepiece
    from transformers import T5TokenizerFast

    os.makedirs(folder, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=f"{folder}/spiece",
        vocab_size=412,
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="nmt_nfkc",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        # A letter that no caption holds still becomes a piece of its own.
        required_chars="".join(chr(code) for code in range(33, 127)),
        num_threads=1,
        minloglevel=2,
    )
    os.remove(f"{folder}/spiece.vocab")
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100}
    write_json(f"{folder}/tokenizer_config.json", config | special)
    fast = T5TokenizerFast.from_pretrained(folder)
    fast.backend_tokenizer.no_padding()
    fast.backend_tokenizer.no_truncation()
    fast.backend_tokenizer.save(f"{folder}/tokenizer.json")
    extra = [f"<extra_id_{index}>" for index in range(100)]
    write_json(f"{folder}/special_tokens_map.json", special | {"additional_special_tokens": extra})
    write_json(
        f"{folder}/tokenizer_config.json", config | special | {"additional_special_tokens": extra}
    )


def write_json(path, value):
    """`value` as an indented JSON file."""
    with open(path, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def write_tokenizers(out, clip_length):
    """Both tokenizers, learned from captions of the training split and a few lines of ordinary words."""
    rng = np.random.default_rng(7)
    lines = world.captions(rng, world.sample_split(rng, 20000, False), vary_case=True)
    common = "the and of to in is it with at by for from as one two three very bright dark shape color colour picture"
    words = Counter()
    for line in lines[:4000]:
        words.update(line.lower().replace(",", " ").replace(".", " ").split())
    words.update(common.split())
    write_clip_tokenizer(f"{out}/tokenizer", words, clip_length)
    # The unigram trainer only considers a word whole once it has seen different things follow it.
    lines += [f"{word} {word}, {word}. {word}s" for word in sorted(words) if words[word] > 20] * 300
    write_t5_tokenizer(f"{out}/tokenizer_2", lines + [common] * 200)


class Tokens:
    """Captions as the token ids that FluxPipeline makes of them."""

    def __init__(self, folder, preset):
        from transformers import CLIPTokenizer, T5TokenizerFast

        self.preset = preset
        self.clip = CLIPTokenizer.from_pretrained(f"{folder}/tokenizer")
        self.t5 = T5TokenizerFast.from_pretrained(f"{folder}/tokenizer_2")

    def __call__(self, texts):
        padded = dict(padding="max_length", truncation=True, return_tensors="np")
        clip = self.clip(texts, max_length=self.preset.clip_length, **padded)
        t5 = self.t5(texts, max_length=self.preset.t5_length, **padded)
        return torch.from_numpy(clip.input_ids.astype(np.int16)), torch.from_numpy(t5.input_ids.astype(np.int16))


# ---------------------------------------------------------------------------------------------------------- models


def make_models(preset, tokens):
    """The untrained models."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(0)
    vae = AutoencoderKL(**vae_config(preset))
    # The latents' own noise starts small: at its usual start, of one, it drowns them for the first thousand steps.
    with torch.no_grad():
        vae.encoder.conv_out.weight[LATENT_CHANNELS:] *= 0.1
        vae.encoder.conv_out.bias[LATENT_CHANNELS:] = -5
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens.clip),
            hidden_size=preset.text_width,
            intermediate_size=2 * preset.text_width,
            projection_dim=preset.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=preset.clip_length,
            hidden_act="quick_gelu",
            # Not 2, which old checkpoints have and which would make "the pooled token" mean "the largest id".
            bos_token_id=tokens.clip.bos_token_id,
            eos_token_id=tokens.clip.eos_token_id,
            pad_token_id=tokens.clip.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=math.ceil(len(tokens.t5) / 64) * 64,
            d_model=preset.text_width,
            d_kv=preset.text_width // 4,
            d_ff=2 * preset.text_width,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            is_encoder_decoder=False,
            use_cache=False,
            tie_word_embeddings=False,
        )
    )
    transformer = FluxTransformer2DModel(**transformer_config(preset))
    # Every block starts as the identity and the whole as zero (DiT's "adaLN-Zero"): deep and stable from step one.
    for name, module in transformer.named_modules():
        if name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return vae, clip, t5, transformer


def load_models(folder):
    """The models of a folder written before."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    return (
        AutoencoderKL.from_pretrained(f"{folder}/vae").float(),
        CLIPTextModel.from_pretrained(f"{folder}/text_encoder", dtype=torch.float32),
        T5EncoderModel.from_pretrained(f"{folder}/text_encoder_2", dtype=torch.float32),
        FluxTransformer2DModel.from_pretrained(f"{folder}/transformer").float(),
    )


def write_weights(path, model, rename=lambda name: name, drop=()):
    """A model's weights in bfloat16."""
    tensors = {
        rename(name): tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name not in drop
    }
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Written aside first: a copy taken meanwhile is never half a file.
    save_file(tensors, f"{path}.part", metadata={"format": "pt"})
    os.chmod(f"{path}.part", 0o644)
    os.replace(f"{path}.part", path)


def write_config(folder, model):
    """A diffusers model's configuration, without the path that it was loaded from."""
    model.save_config(folder)
    with open(f"{folder}/config.json") as file:
        config = json.load(file)
    config.pop("_name_or_path", None)
    write_json(f"{folder}/config.json", config)


def write_vae(out, vae):
    """The VAE's part of a diffusers folder."""
    write_weights(f"{out}/vae/diffusion_pytorch_model.safetensors", vae)
    write_config(f"{out}/vae", vae)


def write_flow(out, preset, clip, t5, transformer):
    """All of a diffusers folder but the VAE and the tokenizers, under the names that public checkpoints use."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    def prefixed(name):
        return name if name.startswith("text_model.") else f"text_model.{name}"

    buffers = ("text_model.embeddings.position_ids", "embeddings.position_ids")
    write_weights(f"{out}/transformer/diffusion_pytorch_model.safetensors", transformer)
    write_weights(f"{out}/text_encoder/model.safetensors", clip, prefixed, buffers)
    write_weights(f"{out}/text_encoder_2/model.safetensors", t5, drop=("encoder.embed_tokens.weight",))
    write_config(f"{out}/transformer", transformer)
    for name, model, kind in (("text_encoder", clip, "CLIPTextModel"), ("text_encoder_2", t5, "T5EncoderModel")):
        config = model.config.to_dict()
        config |= {"architectures": [kind], "torch_dtype": "bfloat16"}
        for field in ("dtype", "_name_or_path", "id2label", "label2id", "problem_type", "transformers_version"):
            config.pop(field, None)
        write_json(f"{out}/{name}/config.json", config)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_config(f"{out}/scheduler")
    index = {
        "_class_name": "FluxPipeline",
        "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(f"{out}/model_index.json", index)
    defaults = {"height": preset.side, "width": preset.side, "num_inference_steps": STEPS}
    write_json(f"{out}/xdit.json", defaults | {"guidance_scale": 0.0, "max_sequence_length": preset.t5_length})


# -------------------------------------------------------------------------------------------------------- training


# Set by `--precision`.
PRECISION = "bf16"


def autocast(device):
    """Mixed precision where it pays."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and PRECISION == "bf16")


def attend_in_bfloat16():
    """On a GPU, attention in single precision would take as long as all the rest of a step."""
    exact = F.scaled_dot_product_attention

    def attend(query, key, value, *rest, **named):
        if not query.is_cuda or query.dtype != torch.float32:
            return exact(query, key, value, *rest, **named)
        return exact(query.bfloat16(), key.bfloat16(), value.bfloat16(), *rest, **named).float()

    F.scaled_dot_product_attention = attend


@torch.no_grad()
def follow(average, parameters, weight):
    """Moves the moving average of the parameters by `weight` towards them."""
    torch._foreach_lerp_(average, parameters, weight)


def picture_error(decoded, pictures):
    """Pixel differences judge colours, differences of neighbours judge edges. Returns the loss and the mean error."""
    error = decoded.float() - pictures
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (error[..., 1:] - error[..., :-1]).abs().mean()
    pixel = error.abs().mean()
    return pixel + (error**2).mean() + 0.5 * edges, pixel.detach()


def train_vae(vae, preset, rng, device, batch, deadline, decoder_only):
    """Learns to write pictures as 16 channels of an eighth of their side, and back.

    First both halves together, on cut-outs. Then the decoder alone, in the end on whole pictures: by then the latents
    hold what matters, and with the encoder at rest the transformer may already learn to draw them.
    """
    vae.to(device, memory_format=torch.channels_last).train()
    parameters = list((vae.decoder if decoder_only else vae).parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-4)
    average = [parameter.detach().clone() for parameter in parameters]

    def loss_of(pictures):
        # The encoder is not optimised in the second stage: no gradients, less work.
        with torch.set_grad_enabled(not decoder_only):
            mean, log_variance = vae.encoder(pictures).chunk(2, dim=1)
        spread = mean.detach().float().std()
        if decoder_only:
            # What the transformer draws is never exact: the decoder learns to bear more or less noise.
            levels = 0.12 * torch.rand(len(mean), 1, 1, 1, device=device)
            return picture_error(vae.decoder(mean + levels * spread * torch.randn_like(mean)), pictures)
        log_variance = log_variance.clamp(-12, 4)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        loss, pixel = picture_error(vae.decoder(latents + 0.05 * spread * torch.randn_like(mean)), pictures)
        kl = 0.5 * (mean.float() ** 2 + log_variance.float().exp() - 1 - log_variance.float()).mean()
        return loss + 1e-5 * kl, pixel

    begin, step = time.time(), 0
    while True:
        done = (time.time() - begin) / max(deadline - begin, 1e-3)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, (step + 1) / 50) * min(1.0, (1 - done) / 0.6 + 0.02)
        crop = preset.side if decoder_only and done > 0.6 else preset.crop
        pictures = world.render(rng, world.sample(rng, batch, preset.grammar), device, preset.side)
        top, left = rng.integers(0, (preset.side - crop) // 8 + 1, 2) * 8
        pictures = pictures[..., top : top + crop, left : left + crop].contiguous(memory_format=torch.channels_last)
        with autocast(device):
            loss, pixel = loss_of(pictures)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        follow(average, parameters, max(0.01, 1 / (step / 10 + 1)))
        if step % 250 == 0:
            say(f"vae step {step} loss {loss.item():.4f} pixel {pixel.item():.4f}")
        step += 1
    with torch.no_grad():
        for parameter, mean in zip(parameters, average):
            parameter.copy_(mean)
    say(f"vae ({'decoder' if decoder_only else 'both halves'}) done after {step} steps of {batch}")
    vae.eval()


@torch.no_grad()
def encode(vae, preset, rng, scenes, device):
    """Latents (their means) of fresh pictures of `scenes`, float32."""
    pictures = world.render(rng, scenes, device, preset.side)
    with autocast(device):
        return vae.encoder(pictures).float().chunk(2, dim=1)[0]


@torch.no_grad()
def scale_latents(vae, preset, rng, device, batch):
    """Sets the VAE's shift and scale so that latents are about unit normal."""
    latents = torch.cat([encode(vae, preset, rng, world.sample(rng, batch, preset.grammar), device) for _ in range(8)])
    shift, scale = latents.mean().item(), 1 / latents.std().item()
    vae.register_to_config(shift_factor=round(shift, 4), scaling_factor=round(scale, 4))
    spread = latents.std(dim=(0, 2, 3))
    say(f"vae shift {shift:.4f} scale {scale:.4f} channel std {spread.min():.3f}..{spread.max():.3f}")


@torch.no_grad()
def report_vae(vae, preset, rng, device, batch):
    """Logs how exactly pictures come back from their latents."""
    pictures = world.render(rng, world.sample(rng, batch, preset.grammar), device, preset.side)
    with autocast(device):
        back = vae.decoder(vae.encoder(pictures).chunk(2, dim=1)[0]).float().clamp(-1, 1)
    say("vae", psnr(((back - pictures) ** 2).mean().item()))


def psnr(error):
    """Mean squared error of values in -1 ... 1, in decibels."""
    return f"psnr {10 * math.log10(4 / max(error, 1e-12)):.1f} dB"


def pack(latents):
    """Latents [n, 16, h, w] as tokens of 2x2 patches [n, h/2 * w/2, 64], as FluxPipeline packs them."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, (h // 2) * (w // 2), c * 4)


def image_ids(side, device):
    """Positions of the image tokens, as FluxPipeline makes them."""
    ids = torch.zeros(side, side, 3, device=device)
    ids[..., 1] += torch.arange(side, device=device)[:, None]
    ids[..., 2] += torch.arange(side, device=device)[None, :]
    return ids.view(-1, 3)


def answers(scenes):
    """What a caption says, as one column of class numbers per question, 0 where it says nothing [n, 14].

    Twice: in the order in which the caption names the shapes, and in the order in which they lie in the picture
    ("A right of B" shows B first), for the picture is all that the transformer has to know.
    """
    swap = (scenes.relation == 1) | (scenes.relation == 3)
    order = np.where(swap[:, None], [[1, 0]], [[0, 1]])
    told = [scenes.size, scenes.colour, scenes.shape]
    lying = [np.take_along_axis(field, order, axis=1) for field in told]
    relation = np.where(swap, scenes.relation - 1, scenes.relation)
    columns = np.stack([scenes.background, relation], axis=1)
    return torch.from_numpy(np.concatenate([columns, *told, *lying], axis=1).astype(np.int64) + 1)


def train_text(clip, preset, tokens, rng, device, batch, deadline):
    """Teaches CLIP to understand captions before there is anything to draw.

    Big models come with encoders that read well. Learned through the pictures alone, "which colour belongs to which
    shape" takes longer than all the rest. Here it is asked directly, by a linear head that is thrown away: the pooled
    output, which modulates every block of the transformer, must say everything that `answers` holds.
    """
    classes = 1 + max(len(world.COLOURS), len(world.SHAPES), len(world.RELATIONS))
    head = torch.nn.Linear(preset.text_width, 14 * classes).to(device)
    parameters = [*clip.to(device).train().parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.98), weight_decay=0.01)

    def read(held_out, count):
        """What the head says of fresh captions, and what is right."""
        scenes = world.sample_split(rng, count, held_out, preset.grammar)
        ids, _ = tokens(world.captions(rng, scenes, vary_case=True))
        # CLIP is causal: nothing behind the last word's end changes what is read off there.
        ends = (ids == tokens.clip.eos_token_id).int().argmax(1)
        pooled = clip(ids[:, : ends.max() + 1].to(device).long()).pooler_output
        return head(pooled).view(-1, 14, classes), answers(scenes).to(device)

    def all_right(said, wanted):
        return (said.argmax(2) == wanted).all(1).float().mean().item()

    begin, step = time.time(), 0
    while (done := (time.time() - begin) / max(deadline - begin, 1e-3)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 100) * min(1.0, (1 - done) / 0.5 + 0.01)
        said, wanted = read(False, batch)
        loss = F.cross_entropy(said.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 0:
            say(f"text step {step} loss {loss.item():.4f}, all answers right for {all_right(said, wanted):.3f}")
        step += 1
    with torch.no_grad():
        share = all_right(*read(True, 1000))
    say(f"text done after {step} steps of {batch}; of held-out captions {share:.3f} read wholly right")


class Pool:
    """Encoded pictures and tokenized captions, made once: training then only picks rows."""

    def __init__(self, out, preset, vae, rng, device, count, deadline):
        tokens = Tokens(out, preset)
        chunk = min(2000 if device.type == "cuda" else 50, count)
        latents, clip, t5 = [], [], []
        seed = int(rng.integers(1 << 30))

        def words(index):
            own = np.random.default_rng((seed, index))
            scenes = world.sample_split(own, chunk, False, preset.grammar)
            return scenes, tokens(world.captions(own, scenes, vary_case=True))

        # Captions are written by another thread while the device encodes.
        with ThreadPoolExecutor(1) as workers:
            pending = [workers.submit(words, index) for index in range(math.ceil(count / chunk))]
            for job in pending:
                if time.time() > deadline and latents:
                    job.cancel()
                    continue
                scenes, (clip_ids, t5_ids) = job.result()
                for rows in np.array_split(np.arange(chunk), math.ceil(chunk / (250 if device.type == "cuda" else 10))):
                    means = encode(vae, preset, rng, scenes.take(rows), device)
                    means = (means - vae.config.shift_factor) * vae.config.scaling_factor
                    latents.append(pack(means).to(torch.bfloat16))
                clip.append(clip_ids)
                t5.append(t5_ids)
        self.latents = torch.cat(latents)
        self.clip = torch.cat(clip).to(device)
        self.t5 = torch.cat(t5).to(device)
        empty_clip, empty_t5 = tokens([""])
        self.empty = empty_clip.to(device), empty_t5.to(device)

    def batch(self, size, drop):
        """Random rows; of a share `drop` of them the caption is forgotten, so that there is something to guide from."""
        device = self.latents.device
        rows = torch.randint(len(self.latents), (size,), device=device)
        forget = (torch.rand(size, 1, device=device) < drop).to(torch.int16)
        clip = self.clip[rows] * (1 - forget) + self.empty[0] * forget
        t5 = self.t5[rows] * (1 - forget) + self.empty[1] * forget
        return self.latents[rows].float(), clip.long(), t5.long()


class Muon:
    """Muon (Jordan et al. 2024): momentum whose every matrix is made orthogonal before it is stepped along.

    For the products inside of the blocks; it learns them in about half of AdamW's steps. The step is scaled so that
    AdamW's learning rates fit (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
    """

    def __init__(self, parameters, momentum=0.95, weight_decay=0.01):
        self.momentum, self.weight_decay = momentum, weight_decay
        by_shape = {}
        for parameter in parameters:
            by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
        self.groups = [(group, torch.zeros_like(torch.stack(list(group)))) for group in by_shape.values()]

    @staticmethod
    def orthogonal(matrices):
        """The nearest semi-orthogonal matrices [n, rows, columns], by five Newton-Schulz steps of fifth order."""
        tall = matrices.shape[1] > matrices.shape[2]
        x = matrices.mT if tall else matrices
        x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            square = x @ x.mT
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        return x.mT if tall else x

    @torch.no_grad()
    def step(self, lr):
        """One step of all parameters along their gradients."""
        for group, mean in self.groups:
            gradients = torch.stack([parameter.grad for parameter in group])
            mean.lerp_(gradients, 1 - self.momentum)
            steps = self.orthogonal(gradients.lerp(mean, self.momentum))
            size = 0.2 * max(steps.shape[1:]) ** 0.5
            torch._foreach_mul_(group, 1 - lr * self.weight_decay)
            torch._foreach_add_(group, list(steps.unbind(0)), alpha=-lr * size)


def sample_times(size, device):
    """Noise levels: spread as Flux's steps are, half of them drawn to where a picture takes shape."""
    mu = TRAINING_SHIFT
    normal = torch.sigmoid(torch.randn(size, device=device) + 0.8)
    uniform = torch.rand(size, device=device)
    shifted = math.exp(mu) * uniform / (1 + (math.exp(mu) - 1) * uniform)
    return torch.where(torch.rand(size, device=device) < 0.5, normal, shifted)


def train_flow(models, preset, pool, out, device, batch, peak_lr, decay, deadline, compile_it):
    """Learns, from the caption, the straight way from noise to latents. CLIP, which reads without fault by now, stays as it is.

    `decay` is the share of the time, at its end, in which the learning rate falls to nothing.
    """
    clip, t5, transformer = models
    for model in models:
        model.to(device).train()
    named = [*transformer.named_parameters(), *t5.named_parameters("t5")]
    parameters = [parameter for _, parameter in named]
    # The products inside of the blocks, without those that make the modulations.
    inner = {
        name
        for name, parameter in named
        if parameter.ndim == 2 and "transformer_blocks" in name and ".norm" not in name
    }
    muon = Muon([parameter for name, parameter in named if name in inner])
    outer = [parameter for name, parameter in named if name not in inner]
    decayed = [parameter for parameter in outer if parameter.ndim >= 2]
    plain = [parameter for parameter in outer if parameter.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.98),
        eps=1e-9,
        fused=device.type == "cuda",
    )
    average = [parameter.detach().clone() for parameter in parameters]
    positions = image_ids(preset.side // 16, device)
    text_positions = torch.zeros(preset.t5_length, 3, device=device)
    if compile_it and device.type == "cuda":
        # Slower but no less right, should this version of PyTorch stumble over a block.
        torch._dynamo.config.suppress_errors = True
        transformer.compile_repeated_blocks()

    def loss_of(clean, clip_ids, t5_ids):
        times = sample_times(len(clean), device)
        noise = torch.randn_like(clean)
        along = times[:, None, None]
        with autocast(device):
            with torch.no_grad():
                pooled = clip(clip_ids).pooler_output
            words = t5(t5_ids)[0]
            flow = transformer(
                hidden_states=(1 - along) * clean + along * noise,
                timestep=times,
                pooled_projections=pooled,
                encoder_hidden_states=words,
                txt_ids=text_positions,
                img_ids=positions,
                return_dict=False,
            )[0]
        return F.mse_loss(flow.float(), noise - clean)

    @torch.no_grad()
    def with_average(action):
        kept = [parameter.detach().clone() for parameter in parameters]
        for parameter, mean in zip(parameters, average):
            parameter.copy_(mean)
        action()
        for parameter, value in zip(parameters, kept):
            parameter.copy_(value)

    begin, step, running, saved = time.time(), 0, 0.0, time.time()
    while True:
        done = (time.time() - begin) / max(deadline - begin, 1e-3)
        if done >= 1:
            break
        lr = peak_lr * min(1.0, (step + 1) / 400) * min(1.0, (1 - done) / max(decay, 1e-3) + 0.003)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = loss_of(*pool.batch(batch, 0.1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        muon.step(2 * lr)
        follow(average, parameters, min(1.0, max(0.001, 1 / (step / 10 + 1))))
        running = running + loss.detach()
        step += 1
        if step in (1, 10, 100) or step % 500 == 0:
            if step % 500 == 0:
                say(f"flow step {step} loss {running.item() / 500:.4f} lr {lr:.2e}")
                running = 0.0
            else:
                say(f"flow step {step} loss {loss.item():.4f}")
        if time.time() - saved > 90:
            with_average(lambda: write_flow(out, preset, *models))
            saved = time.time()
    with torch.no_grad():
        for parameter, mean in zip(parameters, average):
            parameter.copy_(mean)
    write_flow(out, preset, *models)
    say(f"flow done after {step} steps of {batch}")


def main():
    """Runs the stages within the time given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="full")
    parser.add_argument("--out", required=True, help="the folder to write")
    parser.add_argument("--minutes", type=float, default=9, help="time for everything")
    parser.add_argument("--vae-share", type=float, default=0.25, help="of the time, for the VAE")
    parser.add_argument("--text-share", type=float, default=0.06, help="of the time, for CLIP")
    parser.add_argument("--resume", help="a folder of an earlier run to go on from; may be --out itself")
    parser.add_argument("--only", choices=["decoder", "flow"], help="with --resume: go on with this part alone")
    parser.add_argument("--decay", type=float, default=0.5, help="share of the flow's time in which its rate falls")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--pool", type=int, default=400_000, help="pictures to encode at most")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="another one for every resumption: it draws the pictures")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--precision", choices=["bf16", "tf32"], default="bf16", help="of the products on a GPU")
    options = parser.parse_args()
    if options.only and not options.resume:
        parser.error("--only needs --resume")
    global PRECISION
    PRECISION = options.precision
    attend_in_bfloat16()
    preset, out = PRESETS[options.preset], options.out

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    rng = np.random.default_rng(options.seed)
    budget = options.minutes * 60
    end = START + budget
    os.makedirs(out, exist_ok=True)

    if options.resume:
        if os.path.realpath(options.resume) != os.path.realpath(out):
            for name in ("tokenizer", "tokenizer_2"):
                shutil.copytree(f"{options.resume}/{name}", f"{out}/{name}", dirs_exist_ok=True)
        vae, *models = load_models(options.resume)
    else:
        # They take no accelerator: a folder may come with tokenizers made before.
        if not os.path.exists(f"{out}/tokenizer_2/tokenizer.json"):
            write_tokenizers(out, preset.clip_length)
            say("tokenizers done")
        vae, *models = make_models(preset, Tokens(out, preset))
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (vae, *models)]
    say("parameters", dict(zip(("vae", "clip", "t5", "transformer"), sizes)))

    torch.manual_seed(options.seed)
    if options.only != "flow":
        vae_end = end if options.only else START + budget * options.vae_share
        if not options.resume:
            half = time.time() + (vae_end - time.time()) * 0.4
            train_vae(vae, preset, rng, device, options.vae_batch, half, decoder_only=False)
            scale_latents(vae, preset, rng, device, options.vae_batch)
        train_vae(vae, preset, rng, device, options.vae_batch, vae_end, decoder_only=True)
        report_vae(vae, preset, rng, device, options.vae_batch)
    if not options.resume:
        text_end = time.time() + budget * options.text_share
        train_text(models[0], preset, Tokens(out, preset), rng, device, 128, text_end)
    if options.only != "decoder":
        vae.to(device).eval().requires_grad_(False)
        pool = Pool(out, preset, vae, rng, device, options.pool, time.time() + budget * 0.1)
        say(f"pool of {len(pool.latents)} pictures, latent std {pool.latents[:2000].float().std():.3f}")
    # Each part writes its own, so that the parts may go on side by side in one folder.
    if options.only != "flow" or options.resume != out:
        write_vae(out, vae)
    if options.only != "decoder":
        # Whole from here on: a training that breaks off can be resumed.
        write_flow(out, preset, *models)
        compile_it = not options.no_compile
        train_flow(models, preset, pool, out, device, options.batch, options.lr, options.decay, end, compile_it)


if __name__ == "__main__":
    main()
