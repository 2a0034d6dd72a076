"""The parts of `cold_start.sh`.

    cold_start.py shapes SHAPES         writes names and shapes of FLUX.1-dev's tensors; needs diffusers and transformers
    cold_start.py make SHAPES FOLDER    makes a pipeline folder of random weights in bf16; needs torch
    cold_start.py run FOLDER            draws with one step and prints a JSON record for each run
"""

import argparse
import json
import math
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "xdit-models/published/flux-dev"
# tokenizers of a small test model: their tokens are among those of the encoders below
SMALL = ROOT / "xdit-testing/golden/flux-dev"
CLIP = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, vocab_size=49408,
    max_position_embeddings=77, projection_dim=768,
)  # fmt: skip
T5 = dict(
    d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, vocab_size=32128, relative_attention_num_buckets=32,
    relative_attention_max_distance=128, feed_forward_proj="gated-gelu", dense_act_fn="gelu_new", is_gated_act=True,
)  # fmt: skip
VAE = dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, norm_num_groups=32, sample_size=1024)
# Bytes of a file of weights.
SHARD = 5 << 30


def shapes(path: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        models = {
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP)),
            "text_encoder_2": T5EncoderModel(T5Config(**T5)),
            "transformer": FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(PUBLISHED / "transformer")),
            "vae": AutoencoderKL.from_config(json.loads((SMALL / "vae/config.json").read_text()) | VAE),
        }
    tensors = {part: {name: list(x.shape) for name, x in model.state_dict().items()} for part, model in models.items()}
    # as they are called in files
    clip = tensors["text_encoder"].items()
    tensors["text_encoder"] = {f"text_model.{name.removeprefix('text_model.')}": shape for name, shape in clip}
    tensors["text_encoder_2"].pop("encoder.embed_tokens.weight", None)
    path.write_text(json.dumps(tensors))


def write_file(path: Path, tensors: list, device: str) -> None:
    """`tensors`: names, shapes and bytes."""
    import torch

    header, at = {}, 0
    for name, shape, size in tensors:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, _ in tensors:
            # norms' weights around 1, as they are
            mean = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
            x = torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(mean, 0.02)
            left = memoryview(x.cpu().view(torch.uint8).numpy().reshape(-1))
            while left:
                left = left[file.write(left[: 1 << 30]) :]


def make(path: Path, folder: Path, device: str) -> None:
    started = time.time()
    folder.mkdir(parents=True)
    for name in ["transformer", "scheduler"]:
        shutil.copytree(PUBLISHED / name, folder / name)
    for name in ["tokenizer", "tokenizer_2"]:
        shutil.copytree(SMALL / name, folder / name)
    shutil.copy(SMALL / "model_index.json", folder)
    for part, numbers in [("text_encoder", CLIP), ("text_encoder_2", T5), ("vae", VAE)]:
        config = json.loads((SMALL / part / "config.json").read_text()) | numbers
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    jobs = []
    for part, tensors in json.loads(path.read_text()).items():
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        files, filled = [[]], 0
        for name, shape in tensors.items():
            size = 2 * math.prod(shape)
            if filled and filled + size > SHARD:
                files, filled = files + [[]], 0
            files[-1].append((name, shape, size))
            filled += size
        names = [f"{stem}-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
        if len(files) == 1:
            names = [f"{stem}.safetensors"]
        else:
            where = {tensor[0]: name for name, file in zip(names, files) for tensor in file}
            total = sum(tensor[2] for file in files for tensor in file)
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
        jobs += [(folder / part / name, file) for name, file in zip(names, files)]
    # whoever writes a file waits for the device and the system, not for Python
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: write_file(*job, device), jobs))
    total = sum(tensor[2] for _, file in jobs for tensor in file)
    print(json.dumps({"made": str(folder), "gb": round(total / 1e9, 2), "seconds": round(time.time() - started, 1)}))


def status(pid: int) -> dict:
    """KiB by name, of `/proc/PID/status`."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.endswith("kB")}


def warm(folder: Path) -> None:
    for path in sorted(folder.rglob("*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            buffer = bytearray(64 << 20)
            while file.readinto(buffer):
                pass


def run(folder: Path, xdit: str, device: str, runs: int) -> None:
    started = time.time()
    warm(folder)
    print(json.dumps({"warmed": str(folder), "seconds": round(time.time() - started, 1)}), flush=True)
    with tempfile.TemporaryDirectory() as out:
        command = [xdit, "generate", "--model", str(folder), "--device", device, "--dtype", "bf16", "--prompt", "a red cat"]
        command += ["--height", "1024", "--width", "1024", "--num-inference-steps", "1", "--output", f"{out}/x.png"]
        for _ in range(runs):
            print(json.dumps(one(command)), flush=True)


def one(command: list) -> dict:
    """When each of the program's lines came, and the most memory that it held."""
    started = time.time()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    most, ended = {}, threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for name, kib in status(process.pid).items():
                most[name] = max(most.get(name, 0), kib)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    lines = [(round(time.time() - started, 2), line.strip()) for line in process.stderr]
    code = process.wait()
    ended.set()
    watcher.join()
    first = [at for at, line in lines if line.startswith("denoise: 1/1")]
    return {
        "exit_code": code,
        "seconds_to_first_step": first[0] if first else None,
        "seconds_to_picture": round(time.time() - started, 2),
        "host_mib": {name: round(most[name] / 1024) for name in ["RssAnon", "RssFile", "RssShmem", "VmHWM"] if name in most},
        "lines": [f"{at:6.2f} {line}" for at, line in lines],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("shapes")
    made.add_argument("shapes", type=Path)
    making = commands.add_parser("make")
    making.add_argument("shapes", type=Path)
    making.add_argument("folder", type=Path)
    making.add_argument("--device", default="cuda")
    running = commands.add_parser("run")
    running.add_argument("folder", type=Path)
    running.add_argument("--xdit", default="target/release/xdit")
    running.add_argument("--device", default="cuda")
    running.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    match args.command:
        case "shapes":
            shapes(args.shapes)
        case "make":
            make(args.shapes, args.folder, args.device)
        case "run":
            run(args.folder, args.xdit, args.device, args.runs)


if __name__ == "__main__":
    main()
