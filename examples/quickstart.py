"""Sample a diffusers pipeline in parallel over time: two lines more than sequentially.

python examples/quickstart.py
python examples/quickstart.py --model path/to/any/diffusers/pipeline --prompt "a red bicycle"
"""

from __future__ import annotations

import argparse
import time

import torch
from diffusers import DiffusionPipeline

import parasample as ps
from parasample.models import demo_model_path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=str(demo_model_path()), help="folder of a pipeline (default: shipped)"
    )
    parser.add_argument("--prompt", default="a sneaker")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--output", default="quickstart.png")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = DiffusionPipeline.from_pretrained(args.model).to(device)

    def sample(steps: int) -> tuple[object, float]:
        began_at = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        image = pipe(args.prompt, num_inference_steps=steps, generator=generator).images[0]
        return image, time.perf_counter() - began_at

    sample(2)  # the first call of a process is slow
    _, sequential_seconds = sample(args.steps)

    with ps.parallelize(pipe, ps.Picard()) as handle:  # window="auto": the first call is observed ...
        sample(args.steps)
        image, seconds = sample(args.steps)  # ... and from the second on the best window is used
        stats = handle.stats

    image.save(args.output)  # type: ignore[attr-defined]
    print(f"sequential: {args.steps} rounds, {sequential_seconds:.2f} s")
    print(
        f"parallel:   {stats.rounds} rounds, {seconds:.2f} s, {stats.evaluations} evaluations: {args.output}"
    )


if __name__ == "__main__":
    main()
