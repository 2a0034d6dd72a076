"""Draws the held-out captions with diffusers and counts the pictures that show what they should.

    python evaluate.py MODEL --sheet sheet.png --results results.json
"""

import argparse
import json
import os
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image

import check


def draw(pipe, captions, seed, batch, settings):
    """A picture for each caption; the noise of number i is that of seed `seed + i`, made on the CPU."""
    pictures = []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        seeds = [torch.Generator("cpu").manual_seed(seed + start + index) for index in range(len(part))]
        pictures += pipe(
            part,
            generator=seeds,
            **({"negative_prompt": [""] * len(part)} if settings["true_cfg_scale"] > 1 else {}),
            **settings,
        ).images
    return pictures


def judge(job):
    """The verdict on one caption and its picture."""
    caption, picture = job
    return check.verdict(caption, picture)


def kind(caption):
    """The category that a caption is counted under."""
    return check.parse(caption)["relation"] or "single"


def score(captions, pictures):
    """Every verdict, and (right, all) by category."""
    jobs = [(caption, np.asarray(picture)) for caption, picture in zip(captions, pictures)]
    with ProcessPoolExecutor(os.cpu_count()) as workers:
        verdicts = list(workers.map(judge, jobs, chunksize=8))
    table = defaultdict(lambda: [0, 0])
    for caption, verdict in zip(captions, verdicts):
        for name in (kind(caption), "all"):
            table[name][0] += verdict == ""
            table[name][1] += 1
    return verdicts, dict(table)


def contact_sheet(pictures, path, columns=8, side=192):
    """Many pictures as one."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side))
    for index, picture in enumerate(pictures):
        sheet.paste(picture.resize((side, side), Image.LANCZOS), (index % columns * side, index // columns * side))
    sheet.save(path)


def main():
    """Draws, judges, prints."""
    from diffusers import FluxPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--captions", default=os.path.join(os.path.dirname(__file__), "captions.txt"))
    parser.add_argument("--steps", type=int, nargs="+", help="instead of the model's default")
    parser.add_argument("--cfg", type=float, nargs="+", help="true classifier-free guidance, instead of the default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--limit", type=int, help="only so many captions, spread over the list")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--sheet", help="PNG to write the first setting's pictures to")
    parser.add_argument("--results", help="JSON to write all scores and failures to")
    options = parser.parse_args()

    with open(os.path.join(options.model, "xdit.json")) as file:
        defaults = json.load(file)
    defaults.pop("negative_prompt", None)
    with open(options.captions) as file:
        captions = [line.strip() for line in file if line.strip()]
    if options.limit:
        captions = captions[:: max(1, len(captions) // options.limit)][: options.limit]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = FluxPipeline.from_pretrained(options.model, torch_dtype=torch.bfloat16).to(device)
    pipe.set_progress_bar_config(disable=True)

    results, sheet = [], options.sheet
    for cfg in options.cfg or [defaults.get("true_cfg_scale", 1.0)]:
        for steps in options.steps or [defaults["num_inference_steps"]]:
            for seed in options.seeds:
                settings = defaults | {"num_inference_steps": steps, "true_cfg_scale": cfg}
                pictures = draw(pipe, captions, seed, options.batch, settings)
                verdicts, table = score(captions, pictures)
                failures = {caption: verdict for caption, verdict in zip(captions, verdicts) if verdict}
                print(f"steps {steps} cfg {cfg} seed {seed}:", " ".join(f"{k} {a}/{b}" for k, (a, b) in table.items()))
                entry = {"steps": steps, "cfg": cfg, "seed": seed, "score": table, "failures": failures}
                results.append(entry)
                if sheet:
                    contact_sheet(pictures[:: max(1, len(pictures) // 48)][:48], sheet)
                    wrong = [picture for picture, verdict in zip(pictures, verdicts) if verdict]
                    if wrong:
                        contact_sheet(wrong[:48], os.path.splitext(sheet)[0] + "-wrong.png")
                    for caption, verdict in list(failures.items())[:20]:
                        print(f"  {caption}: {verdict}")
                    sheet = None
    if options.results:
        with open(options.results, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
