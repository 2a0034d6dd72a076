"""Tiny tokenizers and text encoders of the two kinds that the pipelines have, CLIP and T5, and what they put out."""

import io
import json
from collections import Counter
from pathlib import Path

import sentencepiece
import torch
from common import PROMPTS, hook, randomise, under
from safetensors.torch import load, save_file
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer)
from transformers.models.t5.modeling_t5 import T5Attention

# what both tokenizers are trained on; some letters of PROMPTS are missing on purpose
SENTENCES = """
a photo of an astronaut riding a horse on the moon
a cat with a red hat and the blue sky over mountains
painting in the style of old masters, highly detailed, soft light at sunrise
a small house near a lake, two dogs playing in green grass
portrait of a woman, 35mm, bokeh, 4k, sharp focus
the quick brown fox jumps over the lazy dog
A red cube on a white table; it's next to the dog's bowl.
An old map, isn't it? "Yes", they said -- and we'd go there!
Watercolour of a café in Zürich, with señor and señora at the window
a black cat and a white dog and a brown horse and a yellow bird
Isometric view of a tiny city, trees, cars and people, clay render
close-up photograph of a green frog sitting on a wet leaf after rain
an oil painting of a ship in a storm under a dark cloudy sky
a bowl of fruit: apples, pears, oranges and grapes, studio lighting
wide shot of a desert road at sunset, cinematic, film grain
a robot reading a book in the library, digital art, trending
children building a sandcastle on the beach, summer afternoon
macro shot of a butterfly on a purple flower (shallow depth of field)
the interior of a modern kitchen, marble counters, natural light
a snowy village at night, warm windows, northern lights above
low poly model of a mountain, pastel colours, simple background
a wolf howling at the full moon, ink drawing, high contrast
logo of a coffee shop, flat vector, minimal, two colours
a long bridge across the river in the fog, early morning
steam train crossing a stone viaduct, valley below, 1920s postcard
""".strip().splitlines()


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def added(content: str, normalized: bool = False) -> dict:
    return {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False,
            "special": True}


def byte_pairs(n: int) -> list[tuple[str, str]]:
    """The first `n` merges for SENTENCES. The trainer of `tokenizers` breaks ties differently in each run."""
    cuts = CLIPTokenizer()._tokenizer
    words: Counter = Counter()
    for sentence in SENTENCES:
        pieces = cuts.pre_tokenizer.pre_tokenize_str(cuts.normalizer.normalize_str(sentence))
        words.update((*piece[:-1], piece[-1] + "</w>") for piece, _ in pieces)
    merges = []
    for _ in range(n):
        pairs: Counter = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter = Counter()
        for word, count in words.items():
            symbols, i = [], 0
            while i < len(word):
                both = word[i : i + 2] == best
                symbols.append("".join(best) if both else word[i])
                i += 2 if both else 1
            merged[tuple(symbols)] += count
        words = merged
    return merges


def clip_tokenizer(folder: Path, published: bool, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A byte-level BPE as CLIP's: 256 bytes, 256 bytes at a word's end, merges, two special tokens.

    `published` writes the files of the repositories on the Hub (transformers 4), otherwise those of transformers 5 and
    `tokenizer.json` are there as well. Stable Diffusion's second tokenizer has a `pad` of "!", id 0, and as that is now
    a special token, "!!" in a prompt is two of them and not one word.
    """
    folder.mkdir(parents=True)
    merges = byte_pairs(300)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in merges]
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    vocab = {token: i for i, token in enumerate([*dict.fromkeys(vocab), bos, eos])}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    ends = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": eos}
    decoder = {vocab[pad]: added(pad), vocab[bos]: added(bos, normalized=True), vocab[eos]: added(eos)}
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "added_tokens_decoder": {str(i): decoder[i] for i in sorted(decoder)},
        **ends, "clean_up_tokenization_spaces": True, "do_lower_case": True, "errors": "replace",
        "model_max_length": 77, "tokenizer_class": "CLIPTokenizer",
    })
    write_json(folder / "special_tokens_map.json", {
        "bos_token": {k: v for k, v in added(bos, normalized=True).items() if k != "special"},
        "eos_token": {k: v for k, v in added(eos).items() if k != "special"},
        "pad_token": pad, "unk_token": {k: v for k, v in added(eos).items() if k != "special"},
    })
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    if not published:
        tokenizer.save_pretrained(folder)
    return tokenizer


def t5_tokenizer(folder: Path, published: bool) -> T5Tokenizer:
    """A unigram model as T5's, 100 `<extra_id_*>` behind it. `published` leaves `spiece.model` alone."""
    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, vocab_size=300, hard_vocab_limit=False,
        character_coverage=1.0, normalization_rule_name="nmt_nfkc", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        num_threads=1, minloglevel=2)
    (folder / "spiece.model").write_bytes(model.getvalue())
    n = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    ends = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    extra = [f"<extra_id_{i}>" for i in range(100)]
    decoder = {0: "<pad>", 1: "</s>", 2: "<unk>", **{n + i: x for i, x in enumerate(reversed(extra))}}
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": True, "added_tokens_decoder": {str(i): added(x) for i, x in decoder.items()},
        "additional_special_tokens": extra, "clean_up_tokenization_spaces": True, **ends, "extra_ids": 100,
        "legacy": True, "model_max_length": 512, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer",
    })
    write_json(folder / "special_tokens_map.json", {
        "additional_special_tokens": extra,
        **{k: {key: x for key, x in added(v).items() if key != "special"} for k, v in ends.items()},
    })
    tokenizer = T5Tokenizer.from_pretrained(folder)
    assert len(tokenizer) == n + 100
    if not published:
        tokenizer.save_pretrained(folder)
    return tokenizer


def clip_encoder(
    tokenizer: CLIPTokenizer, folder: Path, published: bool, layers: int, width: int = 32, heads: int = 4,
    act: str = "quick_gelu", projection: int | None = None,
) -> None:
    """`projection`: the width of the pooled vector, for the class that projects it."""
    # published configurations say 0, 1, 2 whatever the vocabulary; an eos of 2 selects the rule "the largest id" for the
    # place of the pooled vector, any other the rule "the first eos"
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2} if published else {
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id}
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 3 // 2, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=77, projection_dim=projection or width, hidden_act=act, **ids)
    model = randomise((CLIPTextModelWithProjection if projection else CLIPTextModel)(config))
    model.save_pretrained(folder)
    if published and not projection:
        # transformers 5 dropped this prefix of the names and adds it to none when it saves
        path = folder / "model.safetensors"
        save_file({f"text_model.{name}": x for name, x in load(path.read_bytes()).items()}, path, metadata={"format": "pt"})


def t5_encoder(tokenizer: T5Tokenizer, folder: Path, published: bool, layers: int, width: int = 40) -> None:
    model = randomise(T5EncoderModel(T5Config(
        # as upstream's 32128 for 32100 tokens, there are more rows than tokens
        vocab_size=len(tokenizer) + 7, d_model=width, d_kv=12, d_ff=56, num_layers=layers, num_heads=3,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
        # few buckets, so that 32 tokens reach beyond the largest distance; otherwise upstream's
        relative_attention_num_buckets=8 if published else 32,
        relative_attention_max_distance=20 if published else 128)))
    for block in model.encoder.block:
        # T5 has no 1 / sqrt(d_kv) in its attention: it is in the weights
        block.layer[0].SelfAttention.q.weight.data /= 12**0.5
    model.save_pretrained(folder, max_shard_size="80KB" if published else "1GB")


def build(folder: Path, published: bool, layers: int) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer", published)
    clip_encoder(tokenizer, folder / "text_encoder", published, layers)
    tokenizer_2 = t5_tokenizer(folder / "tokenizer_2", published)
    t5_encoder(tokenizer_2, folder / "text_encoder_2", published, layers)


def token_ids(tokenizer, prompt: str, length: int) -> torch.Tensor:
    """As pipelines call their tokenizers."""
    return tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def id_goldens(kind: str, tokenizer, length: int) -> dict[str, torch.Tensor]:
    out = {f"ids.{kind}.{name}": token_ids(tokenizer, prompt, length) for name, prompt in PROMPTS.items()}
    # one token too short, just long enough, one to pad
    n = len(tokenizer(PROMPTS["plain"]).input_ids)
    return out | {
        f"ids_at.{kind}.{length}": token_ids(tokenizer, PROMPTS["plain"], length) for length in (n - 1, n, n + 1)}


def clip_goldens(kind: str, tokenizer, clip) -> dict[str, torch.Tensor]:
    out = id_goldens(kind, tokenizer, 77)
    pooled: dict[str, torch.Tensor] = {}
    projects = isinstance(clip, CLIPTextModelWithProjection)
    if projects:
        # its output has no `pooler_output`
        clip.text_projection.register_forward_hook(lambda _module, args, _output: pooled.update(before=args[0].clone()))
    for name in PROMPTS:
        states = clip(out[f"ids.{kind}.{name}"], output_hidden_states=True)
        out[f"{kind}.{name}.pooled"] = pooled["before"] if projects else states.pooler_output
        if projects:
            out[f"{kind}.{name}.text_embeds"] = states.text_embeds
        if name in ("plain", "long"):
            out |= under(f"{kind}.{name}.hidden", dict(enumerate(states.hidden_states)))
            out[f"{kind}.{name}.last"] = states.last_hidden_state
    return out


def t5_goldens(tokenizer, t5: T5EncoderModel, masked: bool = False) -> dict[str, torch.Tensor]:
    """`masked`: padding is hidden, as PixArt has it."""
    out = id_goldens("t5", tokenizer, 32)
    layers: dict[str, torch.Tensor] = {}
    for i, block in enumerate(t5.encoder.block):
        hook(layers, str(i), block.layer[-1])
    for name in ("plain", "long"):
        ids = out[f"ids.t5.{name}"]
        mask = (ids != tokenizer.pad_token_id).long() if masked else None
        layers.clear()
        states = t5(ids, attention_mask=mask, output_hidden_states=True)
        if masked:
            out[f"t5.{name}.mask"] = mask
        out |= under(f"t5.{name}.hidden", dict(enumerate(states.hidden_states)))
        out |= under(f"t5.{name}.layer", layers)
        out[f"t5.{name}.last"] = states.last_hidden_state
    out["t5.bias"] = t5.encoder.block[0].layer[0].SelfAttention.compute_bias(32, 32)
    return out


def goldens(pipe) -> dict[str, torch.Tensor]:
    """Flux's two."""
    out = clip_goldens("clip", pipe.tokenizer, pipe.text_encoder)
    out |= t5_goldens(pipe.tokenizer_2, pipe.text_encoder_2)
    # upstream's buckets for every distance a prompt of 512 tokens has; f32 logarithms decide where they change
    distances = torch.arange(-511, 512)
    out["t5.buckets.distance"] = distances
    out["t5.buckets.bucket"] = T5Attention._relative_position_bucket(distances, True, 32, 128)
    return out
