"""Noise as PyTorch's CPU generator draws it: sizes around the block of 16, seeds beyond 32 bits, draws in a row.

    python xdit-testing/golden/make_noise.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

SEEDS = (0, 1, 42, 2**32 + 5, 2**63 - 1)
SIZES = (1, 5, 15, 16, 17, 31, 32, 100, 1000, 65536)


def sample(values: torch.Tensor) -> torch.Tensor:
    """Of many values the first and last 64 and every 997th between, which keeps the file small."""
    n = len(values)
    if n <= 1000:
        return values
    return values[torch.cat([torch.arange(64), torch.arange(64, n - 64, 997), torch.arange(n - 64, n)])]


tensors = {}
for seed in SEEDS:
    for size in SIZES:
        generator = torch.Generator("cpu").manual_seed(seed)
        values = torch.randn(size, generator=generator)
        tensors[f"{seed}.{size}"] = sample(values).contiguous()
        if size > 1000:
            # what the sample leaves out
            tensors[f"{seed}.{size}.sum"] = values.double().sum()
    generator = torch.Generator("cpu").manual_seed(seed)
    for i, size in enumerate((5, 16, 33, 3)):
        tensors[f"{seed}.in_a_row.{i}"] = torch.randn(size, generator=generator)
path = Path(__file__).parent / "noise.safetensors"
save_file(tensors, path, metadata={"torch": torch.__version__})
path.chmod(0o644)
