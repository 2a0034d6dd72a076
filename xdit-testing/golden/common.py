"""What every script here shares: one thread, prompts, random weights, hooks, and the file that is written."""

import os
from pathlib import Path

# before torch and tokenizers are imported: how many threads share a sum decides its last bits
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import diffusers
import torch
import transformers
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent

PROMPTS = {
    "plain": "a photo of a red cat",
    "upper": "A Photo Of An ASTRONAUT, riding!! (a horse)",
    "punctuation": "it's the dog's 2nd house -- isn't it? #1 [x] {y} a_b",
    "accents": "un café à Zürich, señor, naïve Ångström",
    "cjk": "一只红色的猫 and 日本語 🐈‍⬛ emoji",
    # what Unicode normal forms change: combining marks, ligatures, full width, fractions, hard spaces
    "forms": "cafe\u0301 ﬁne Ｆｕｌｌ ½ ① ™ hard\u00a0space İstanbul ẞ",
    "numbers": "35mm f/1.8, 1920x1080, 3.14159 and 1,000,000",
    "spaces": "  a   cat \t on\na  mat  ",
    "special": "a <|endoftext|> cat </s> and <pad> dog",
    "empty": "",
    # beyond both limits: 77 tokens of CLIP, and of T5 what the pipelines here ask for, 32
    "long": "a cat and a dog and " * 40,
}


def deterministic() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.disable_progress_bar()


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Random weights, biases and norms, so that a swapped pair of them (shift and scale, queries and keys, the order of
    heads) shows; of a size that keeps activations near 1."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for name, p in model.named_parameters():
        noise = torch.randn_like(p)
        if id(p) in embeddings:
            p.data = 0.7 * noise
        elif p.ndim == 1:
            p.data = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            p.data = noise * 1.2 / p[0].numel() ** 0.5
    return model.eval()


def hook(out: dict, key: str, module: torch.nn.Module) -> None:
    """Keeps what `module` returns in `out`: at `key`, or at `key.0`, `key.1` if it returns several tensors."""

    def keep(_module, _args, output):
        parts = output if isinstance(output, tuple) else (output,)
        for i, part in enumerate(parts):
            if isinstance(part, torch.Tensor):
                out[key if len(parts) == 1 else f"{key}.{i}"] = part.detach().clone()

    module.register_forward_hook(keep)


def under(prefix: str, tensors: dict) -> dict:
    return {f"{prefix}.{key}": value for key, value in tensors.items()}


def save(tensors: dict[str, torch.Tensor], name: str) -> None:
    """Writes `<name>.golden.safetensors`. A number that is not finite would make every comparison pass or fail."""
    for key, x in tensors.items():
        assert not x.is_floating_point() or x.isfinite().all(), key
    # one entry: several are written in another order each time
    made_with = ", ".join(f"{m.__name__} {m.__version__.split('+')[0]}" for m in (torch, diffusers, transformers))
    path = HERE / f"{name}.golden.safetensors"
    save_file({key: x.detach().clone().contiguous() for key, x in tensors.items()}, path, metadata={"made_with": made_with})
    path.chmod(0o644)
