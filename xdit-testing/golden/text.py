"""Tiny tokenizers and text encoders, and what they put out: CLIP and T5, and BERT and mT5 as Hunyuan has them."""

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
    BertConfig, BertModel, BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer,
    T5Config, T5EncoderModel, T5Tokenizer)
from transformers.convert_slow_tokenizer import import_protobuf
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

# what the tokenizers of models for Chinese and English are trained on as well
CHINESE = """
一个宇航员在骑马
一只红色的猫坐在白色的桌子上
一只黑色的猫和一只白色的狗
月光下的山和湖，水墨画
请将“杞人忧天”的样子画出来
古老的城市，早上的雾，电影感
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


def pieces(sentences: list[str], normal_form: str = "nmt_nfkc", **options) -> bytes:
    """A unigram model as T5's are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model, hard_vocab_limit=False, character_coverage=1.0,
        normalization_rule_name=normal_form, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
        **options)
    return model.getvalue()


T5_ENDS = {0: "<pad>", 1: "</s>", 2: "<unk>"}
T5_NAMED = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def t5_named_with_flags() -> dict:
    return {k: {key: x for key, x in added(v).items() if key != "special"} for k, v in T5_NAMED.items()}


def t5_tokenizer(folder: Path, published: bool) -> T5Tokenizer:
    """A unigram model as T5's, 100 `<extra_id_*>` behind it. `published` leaves `spiece.model` alone."""
    folder.mkdir(parents=True)
    model = pieces(SENTENCES, vocab_size=300)
    (folder / "spiece.model").write_bytes(model)
    n = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    extra = [f"<extra_id_{i}>" for i in range(100)]
    decoder = {**T5_ENDS, **{n + i: x for i, x in enumerate(reversed(extra))}}
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": True, "added_tokens_decoder": {str(i): added(x) for i, x in decoder.items()},
        "additional_special_tokens": extra, "clean_up_tokenization_spaces": True, **T5_NAMED, "extra_ids": 100,
        "legacy": True, "model_max_length": 512, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer",
    })
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": extra, **t5_named_with_flags()})
    tokenizer = T5Tokenizer.from_pretrained(folder)
    assert len(tokenizer) == n + 100
    if not published:
        tokenizer.save_pretrained(folder)
    return tokenizer


def mt5_tokenizer(folder: Path, published: bool) -> T5Tokenizer:
    """A unigram model as mT5's: a piece for each byte, and 100 `▁<extra_id_*>` that are pieces themselves, 10 here.
    `published` leaves `spiece.model` alone, otherwise there is `tokenizer.json` alone, without a map of characters.
    """
    folder.mkdir(parents=True)
    ModelProto = import_protobuf().ModelProto
    normal_form = "nmt_nfkc" if published else "identity"
    model = ModelProto.FromString(pieces(SENTENCES + CHINESE, normal_form, vocab_size=640, byte_fallback=True))
    for i in reversed(range(10)):
        model.pieces.add(piece=f"▁<extra_id_{i}>", score=0.0, type=ModelProto.SentencePiece.USER_DEFINED)
    (folder / "spiece.model").write_bytes(model.SerializeToString(deterministic=True))
    write_json(folder / "tokenizer_config.json", {
        "added_tokens_decoder": {str(i): added(x) for i, x in T5_ENDS.items()}, "additional_special_tokens": [],
        "clean_up_tokenization_spaces": True, **T5_NAMED, "extra_ids": 0, "legacy": True,
        "model_max_length": 1000000000000000019884624838656, "sp_model_kwargs": {}, "tokenizer_class": "T5Tokenizer",
    })
    write_json(folder / "special_tokens_map.json", t5_named_with_flags())
    tokenizer = T5Tokenizer.from_pretrained(folder)
    if not published:
        tokenizer.save_pretrained(folder)
        (folder / "spiece.model").unlink()
    return tokenizer


def bert_vocabulary() -> list[str]:
    """Special tokens, characters, whole words and ends of words. Some letters are missing on purpose."""
    words = Counter(word for line in SENTENCES for word in line.lower().split() if word.isalpha())
    words = sorted((word for word, count in words.items() if count > 1 and len(word) > 1), key=lambda x: (-words[x], x))
    letters = list("abcdefghijklmnoprstuvwxyz0123456789")
    chinese = sorted({c for line in CHINESE for c in line if c.isalpha()} | {"日", "本"})
    ends = ["ing", "ed", "er", "s", "es", "ly", "tion", "naut", "de", "rs", "ion", "al", "e", "ors", "ty"]
    return list(dict.fromkeys([
        "[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"!\"#'(),-./:;?[]_{}，“”。", *letters, *chinese,
        *"APOé", *(f"##{c}" for c in [*letters, *"ANSTRO", "é", "的", "猫", "本"]), *words, "zurich", "cafe",
        *(f"##{end}" for end in ends)]))


def bert_tokenizer(folder: Path, published: bool) -> BertTokenizer:
    """Word pieces as BERT's for Chinese: every Chinese character is a word. `published` leaves `vocab.txt` alone."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("".join(f"{x}\n" for x in bert_vocabulary()), encoding="utf-8")
    named = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]",
             "unk_token": "[UNK]"}
    write_json(folder / "tokenizer_config.json", {
        "clean_up_tokenization_spaces": True, **named, "do_basic_tokenize": True, "do_lower_case": published,
        "model_max_length": 77, "never_split": None, "strip_accents": None if published else True,
        "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer",
    })
    write_json(folder / "special_tokens_map.json", named)
    tokenizer = BertTokenizer.from_pretrained(folder)
    if not published:
        tokenizer.save_pretrained(folder)
        (folder / "vocab.txt").unlink()
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


def bert_encoder(tokenizer: BertTokenizer, folder: Path, published: bool, layers: int) -> None:
    model = randomise(BertModel(BertConfig(
        vocab_size=len(tokenizer) + 5, hidden_size=24 if published else 32, num_hidden_layers=layers,
        num_attention_heads=3 if published else 4, intermediate_size=40, max_position_embeddings=80)))
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    tensors = load(path.read_bytes())
    if published:
        # as transformers 4 wrote it until its version 4.31
        tensors["embeddings.position_ids"] = torch.arange(80).unsqueeze(0)
    else:
        # a whole BertForPreTraining, of which BertModel is the part with the prefix
        tensors = {f"bert.{name}": x for name, x in tensors.items()}
        tensors["cls.predictions.bias"] = torch.zeros(len(tokenizer) + 5)
        tensors["cls.seq_relationship.weight"], tensors["cls.seq_relationship.bias"] = torch.zeros(2, 32), torch.zeros(2)
    save_file(tensors, path, metadata={"format": "pt"})


def build(folder: Path, published: bool, layers: int) -> None:
    tokenizer = clip_tokenizer(folder / "tokenizer", published)
    clip_encoder(tokenizer, folder / "text_encoder", published, layers)
    tokenizer_2 = t5_tokenizer(folder / "tokenizer_2", published)
    t5_encoder(tokenizer_2, folder / "text_encoder_2", published, layers)


def build_bert_mt5(folder: Path, published: bool, layers: int) -> None:
    tokenizer = bert_tokenizer(folder / "tokenizer", published)
    bert_encoder(tokenizer, folder / "text_encoder", published, layers)
    tokenizer_2 = mt5_tokenizer(folder / "tokenizer_2", published)
    t5_encoder(tokenizer_2, folder / "text_encoder_2", published, layers, width=24)


def tokens(tokenizer, prompt: str, length: int):
    """As pipelines call their tokenizers: `input_ids` and `attention_mask`."""
    return tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def token_ids(tokenizer, prompt: str, length: int) -> torch.Tensor:
    return tokens(tokenizer, prompt, length).input_ids


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


def masked_goldens(pipe, kinds: dict, prompts: dict[str, str], detailed: list[str]) -> dict[str, torch.Tensor]:
    """Tokens of all prompts and what encoders that do not look at padding make of them.

    `kinds` maps a key to a tokenizer, an encoder, a length, and the prompts whose states are kept; of those in
    `detailed` every layer's are.
    """
    out: dict[str, torch.Tensor] = {}
    for kind, (tokenizer, encoder, length, states_of) in kinds.items():
        for name, prompt in prompts.items():
            inputs = tokens(tokenizer, prompt, length)
            out[f"ids.{kind}.{name}"], out[f"mask.{kind}.{name}"] = inputs.input_ids, inputs.attention_mask.bool()
            if name not in states_of:
                continue
            # as pipelines do it: without token types
            states = encoder(inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True)
            out[f"{kind}.{name}.last"] = states.last_hidden_state
            if name in detailed:
                out |= under(f"{kind}.{name}.hidden", dict(enumerate(states.hidden_states)))
    return out


def cut_off(tokenizer, prompts: dict[str, str], length: int) -> dict[str, str]:
    """The parts of prompts for which there is no room, as pipelines warn of them."""
    out = {}
    for name, prompt in prompts.items():
        ids = tokenizer(prompt, padding="longest", return_tensors="pt").input_ids
        if ids.shape[-1] > length:
            out[name] = tokenizer.batch_decode(ids[:, length - 1 : -1], clean_up_tokenization_spaces=False)[0]
    return out


# options of tokenizer_config.json, of which the folders have two combinations
BERT_VARIANTS = {
    "lower": {},
    "cased": {"do_lower_case": False},
    "cased_stripped": {"do_lower_case": False, "strip_accents": True},
    "accents": {"strip_accents": False},
    "whole": {"tokenize_chinese_chars": False},
}


def bert_variants(prompts: dict[str, str]) -> dict[str, torch.Tensor]:
    vocabulary = {token: i for i, token in enumerate(bert_vocabulary())}
    return {
        f"ids.bert.{variant}.{name}": token_ids(BertTokenizer(vocab=vocabulary, **options), prompt, 77)
        for variant, options in BERT_VARIANTS.items() for name, prompt in prompts.items()}
