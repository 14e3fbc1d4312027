"""The same pipeline on several devices: each evaluates its share of a round's states.

    torchrun --nproc-per-node 2 examples/many_devices.py

One process per GPU (NCCL), or several on the CPU (Gloo). Every rank makes the same call with the same seed
and gets the same picture; only the evaluations are shared.
"""

from __future__ import annotations

import os
import time

import torch
from diffusers import DiffusionPipeline

import parasample as ps
from parasample.models import demo_model_path


def main() -> None:
    rank, ranks = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cuda", rank) if torch.cuda.is_available() else torch.device("cpu")
    pipe = DiffusionPipeline.from_pretrained(demo_model_path()).to(device)
    pipe.set_progress_bar_config(disable=True)

    # One state per device and round is enough where one evaluation fills a device; more where it does not.
    with ps.parallelize(pipe, ps.Picard(window="full", states_per_round=8 * ranks)) as handle:
        began_at = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        image = pipe("a sneaker", num_inference_steps=50, generator=generator).images[0]
        seconds = time.perf_counter() - began_at
    if rank == 0:
        image.save("many_devices.png")
        stats = handle.stats
        print(f"{ranks} ranks: 50 steps in {stats.rounds} rounds, {seconds:.2f} s, {stats.bytes_sent} B sent")


if __name__ == "__main__":
    main()
