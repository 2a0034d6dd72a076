"""What transformers makes of settings in a tokenizer's files: `tokenizers.cases.json`.

A case is the tokenizer folder of another golden model with some settings changed, and what comes of it when diffusers
calls it: ids and mask of each prompt, or nothing where transformers refuses."""

import json
import shutil
import tempfile
from pathlib import Path

from common import HERE, deterministic
from transformers import BertTokenizer, CLIPTokenizer, T5Tokenizer

CLIP, CLIP_JSON = "flux-dev/tokenizer", "flux-schnell/tokenizer"
T5, T5_JSON, MT5 = "flux-dev/tokenizer_2", "flux-schnell/tokenizer_2", "hunyuan-v11/tokenizer_2"
BERT, BERT_JSON = "hunyuan-v11/tokenizer", "hunyuan-v12/tokenizer"
CLASSES = {CLIP: CLIPTokenizer, CLIP_JSON: CLIPTokenizer, T5: T5Tokenizer, T5_JSON: T5Tokenizer, MT5: T5Tokenizer,
           BERT: BertTokenizer, BERT_JSON: BertTokenizer}
ALL = [CLIP, CLIP_JSON, T5, T5_JSON, BERT, BERT_JSON]

PROMPTS = {
    "empty": "",
    "blank": "  \t ",
    "plain": "a photo of a red Cat",
    "special": "A café<|endoftext|> cat </s>[SEP] <extra_id_1> xyz [PAD]!!",
    "long": "the quick brown fox jumps over the lazy dog and a cat",
}
MAX_LENGTH = 14
DELETE = "(delete)"

CONFIG = "tokenizer_config.json"
MAP = "special_tokens_map.json"
JSON = "tokenizer.json"
ADDED = "added_tokens.json"


def flags(content: str, **more: bool) -> dict:
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, **more}


def cases() -> list[tuple[str, dict]]:
    out = []

    def add(bases, *changes: dict) -> None:
        out.extend((base, change) for base in bases for change in changes)

    config = lambda **keys: {CONFIG: keys}
    # sides, lengths
    add(ALL, {}, config(padding_side="left"), config(truncation_side="left"),
        config(padding_side="left", truncation_side="left"))
    add([CLIP], config(padding_side="middle"), config(truncation_side="up"), config(padding_side=None),
        config(padding_side=1))
    add([CLIP, T5_JSON], config(model_max_length=10), config(model_max_length=10**30), config(model_max_length=DELETE),
        config(model_max_length=None), config(model_max_length=DELETE, max_len=9), config(model_max_length=12.0),
        config(model_max_length=1e30), config(model_max_length="77"), config(model_max_length=-1))
    # the file's own padding and truncation, which calls replace but for their direction and token
    padding = {"strategy": {"Fixed": 7}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 3, "pad_type_id": 1,
               "pad_token": "!"}
    truncation = {"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    add([CLIP_JSON, T5_JSON, BERT_JSON], {JSON: {"padding": padding}}, {JSON: {"truncation": truncation}},
        {JSON: {"padding": padding}, CONFIG: {"padding_side": "right", "pad_token": DELETE}},
        {JSON: {"truncation": truncation}, CONFIG: {"truncation_side": "right"}})
    # a file's other parts, which the classes build for themselves
    add([CLIP_JSON, T5_JSON, BERT_JSON],
        {JSON: {"normalizer": None}}, {JSON: {"post_processor": None}}, {JSON: {"pre_tokenizer": None}},
        {JSON: {"added_tokens": []}}, {JSON: {"added_tokens": DELETE}})
    # special tokens
    add([CLIP, CLIP_JSON, BERT], config(pad_token="!"), config(pad_token=None), config(pad_token=DELETE),
        config(unk_token="a</w>"), config(unk_token=None), config(pad_token=flags("[PAD]", special=True)),
        config(foo_token="cat"), config(pad_token=flags("[PAD]", __type="AddedToken")), config(pad_token=3))
    add([T5, T5_JSON, MT5], config(pad_token="</s>"), config(eos_token="<unk>"), config(unk_token="<pad>"),
        config(pad_token=None), config(eos_token=None), config(bos_token="<s>"), config(sep_token="cat"))
    add([CLIP, CLIP_JSON], config(bos_token="!"), config(eos_token="!"), config(bos_token=None), config(eos_token=None),
        {CONFIG: {"added_tokens_decoder": DELETE}, MAP: {"pad_token": "!"}}, {MAP: {"pad_token": "!"}})
    add([BERT, BERT_JSON], config(cls_token="[PAD]"), config(sep_token="cat"), config(cls_token=None),
        config(mask_token=None), config(mask_token="cat"), config(bos_token="cat", eos_token="dog"))
    add(ALL, config(extra_special_tokens=["cat", flags("xyz")]), config(additional_special_tokens=["cat"]),
        config(extra_special_tokens={"image_token": "cat"}), config(split_special_tokens=True),
        {ADDED: {"cat": 5000}}, {ADDED: {"cat": 5000}, CONFIG: {"added_tokens_decoder": DELETE}},
        {MAP: {"extra_special_tokens": ["cat"]}, CONFIG: {"added_tokens_decoder": DELETE}},
        {MAP: {"additional_special_tokens": ["cat"]}, CONFIG: {"added_tokens_decoder": DELETE}})
    # the same where no map has the last word
    alone = lambda **keys: {CONFIG: keys, MAP: DELETE}
    add([CLIP_JSON], alone(), alone(bos_token="!"), alone(eos_token="!"), alone(pad_token="!"), alone(pad_token=None),
        alone(unk_token=None), alone(pad_token=DELETE), alone(bos_token=DELETE, eos_token=DELETE))
    add([BERT, BERT_JSON], alone(), alone(cls_token="[PAD]"), alone(sep_token="cat"), alone(cls_token=None),
        alone(sep_token=None), alone(mask_token=None), alone(mask_token="cat"), alone(pad_token="cat"),
        alone(bos_token="cat", eos_token="dog"), alone(unk_token="cat"), alone(unk_token=None))
    add([T5_JSON], alone(), alone(extra_ids=5), alone(extra_ids=0), alone(pad_token="</s>"), alone(eos_token="<unk>"),
        alone(eos_token=DELETE), alone(extra_special_tokens=DELETE), alone(extra_special_tokens=DELETE, extra_ids=3),
        alone(extra_special_tokens=DELETE, additional_special_tokens=["cat"]), alone(unk_token="a"))
    # ends
    add(ALL, config(add_bos_token=True), config(add_bos_token=False), config(add_eos_token=True),
        config(add_eos_token=False))
    # spelling
    add(ALL, config(add_prefix_space=True), config(add_prefix_space=False), config(do_lower_case=False),
        config(do_lower_case=True), config(strip_accents=True), config(strip_accents=False), config(legacy=True),
        config(legacy=False), config(tokenize_chinese_chars=False), config(clean_up_tokenization_spaces=False),
        config(errors="strict"), config(sp_model_kwargs={"alpha": 0.1}), config(tokenizer_class="LlamaTokenizer"))
    add([BERT], config(never_split=["Cat"]), config(do_basic_tokenize=False), config(do_lower_case=None),
        config(tokenize_chinese_chars=None))
    # masks
    add([T5, BERT], config(model_input_names=["input_ids"]), config(model_input_names=["input_ids", "attention_mask"]))
    add(ALL, config(pad_token_type_id=3), config(model_input_names="input_ids"), config(max_length=5),
        config(stride=3), config(pad_to_multiple_of=16), config(truncation_strategy="only_second"),
        config(truncation=False), config(padding="longest"))
    # reserved tokens
    add([T5, T5_JSON, MT5], config(extra_ids=0), config(extra_ids=5), config(extra_ids=5, added_tokens_decoder=DELETE),
        config(extra_ids=5, additional_special_tokens=["<extra_id_0>"], extra_special_tokens=["dog"]),
        config(additional_special_tokens=["cat"], extra_special_tokens=["dog"]), config(extra_ids=-1))
    # files that nothing names here, and where it is said how they are called
    add([CLIP_JSON, T5_JSON], config(fast_tokenizer_files=["tokenizer.4.0.0.json"]), config(vocab_file="elsewhere"),
        config(tokenizer_file="elsewhere"), config(init_inputs=[]), config(init_inputs=["x"]))
    return out


def changed(value: dict, change: dict) -> dict:
    merged = {**value, **change}
    return {key: x for key, x in merged.items() if x != DELETE}


def run(base: str, change: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        shutil.copytree(HERE / base, at, dirs_exist_ok=True)
        for name, keys in change.items():
            path = at / name
            if keys == DELETE:
                path.unlink()
                continue
            before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            path.write_text(json.dumps(changed(before, keys)), encoding="utf-8")
        # what fails, fails in many ways
        try:
            tokenizer = CLASSES[base].from_pretrained(at)
            ids, masks = {}, {}
            for name, prompt in PROMPTS.items():
                # a list, as diffusers' pipelines have it
                out = tokenizer([prompt], padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt")
                ids[name] = out.input_ids[0].tolist()
                masks[name] = "".join(str(x) for x in out.attention_mask[0].tolist())
            # as FLUX and Stable Diffusion 3 have it with CLIP
            limit = tokenizer.model_max_length
            if CLASSES[base] is CLIPTokenizer and limit < 10**20:
                tokenizer([""], padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        except Exception as error:
            return {"refused": f"{type(error).__name__}: {error}".replace(folder, "").split("\n")[0][:120]}
    # what is beyond any text counts as no limit
    return {"model_max_length": limit if isinstance(limit, (int, float)) and limit < 1e9 else None, "ids": ids, "mask": masks}


def main() -> None:
    deterministic()
    plain: dict[str, dict] = {}
    done = []
    for base, change in cases():
        got = run(base, change)
        if not change:
            plain[base] = got
        # what changes nothing is not written out
        same = bool(change) and got == plain.get(base)
        done.append({"base": base, "class": CLASSES[base].__name__, "files": change, **({"as_base": True} if same else got)})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in done)
    head = json.dumps(PROMPTS, ensure_ascii=False)
    (HERE / "tokenizers.cases.json").write_text(
        f'{{"max_length": {MAX_LENGTH}, "prompts": {head}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
