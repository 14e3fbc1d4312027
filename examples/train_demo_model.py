"""Train the demo model of parasample on one CPU core: a tiny, complete Stable Diffusion of Fashion-MNIST.

    python examples/train_demo_model.py                             # every stage with its default budget
    python examples/train_demo_model.py unet export --minutes 120   # train the U-Net longer, then ship it

A stage stops when its budget is spent, saves as it goes under --work and resumes from there; a finished stage
costs nothing. `export` may run beside a training `unet` stage: it ships the latest checkpoint.
"""

import argparse
import gzip
import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import parasample.models
from parasample.models import FashionClassifier

DEBIAN_DATA = Path("/usr/share/datasets/fashion-mnist")
DEFAULT_MINUTES = {"vae": 22.0, "unet": 62.0, "classifier": 8.0}
STAGES = ("vae", "unet", "classifier", "export")
SAVE_EVERY_S = 120.0  # what an interruption may cost

# In class order; the first name of each class is its prompt in parasample.models.CLASS_PROMPTS.
NAMES = (
    ("a t-shirt", "a tee", "a top"),
    ("a pair of trousers", "trousers", "pants"),
    ("a pullover", "a sweater", "a jumper"),
    ("a dress", "a gown"),
    ("a coat", "a jacket"),
    ("a sandal", "an open shoe"),
    ("a shirt", "a blouse"),
    ("a sneaker", "a running shoe", "a trainer"),
    ("a bag", "a handbag", "a purse"),
    ("an ankle boot", "a boot"),
)
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "a product photo of {}", "{} on a black background")
MAX_TOKENS = 16
UNCONDITIONAL = len(NAMES)  # row of the empty prompt, after the ten classes
CAPTION_DROPOUT = 0.12  # share of pictures trained with the empty prompt, for classifier-free guidance
KL_WEIGHT = 0.002  # against the L1 error summed over a picture; at 0.02 one of four channels falls silent
MIN_SNR_GAMMA = 5.0  # arXiv 2303.09556, section 3.4
EMA_DECAY = 0.999  # averages the last thousand of some ten thousand steps


def load_split(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Pictures `[N, 1, 32, 32]` uint8, padded with black from 28x28, and labels `[N]` int64."""
    arrays = []
    for kind, header_bytes in (("images-idx3", 16), ("labels-idx1", 8)):
        path = folder / f"{split}-{kind}-ubyte.gz"
        if not path.is_file():
            raise SystemExit(
                f"{path} not found: get Fashion-MNIST with `apt install dataset-fashion-mnist`, or fetch its "
                "four .gz files from https://github.com/zalandoresearch/fashion-mnist and pass --data FOLDER"
            )
        content = bytearray(gzip.decompress(path.read_bytes())[header_bytes:])
        arrays.append(torch.frombuffer(content, dtype=torch.uint8))
    pictures, labels = arrays
    return F.pad(pictures.view(-1, 1, 28, 28), (2, 2, 2, 2)), labels.long()


def to_float(pictures: Tensor) -> Tensor:
    """Pictures as float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1.0


def minibatches(size: int, batch_size: int) -> Iterator[Tensor]:
    """Index batches `[batch_size]`, reshuffled each epoch, for ever."""
    while True:
        yield from torch.randperm(size)[: size - size % batch_size].view(-1, batch_size)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def save_checkpoint(path: Path, state: dict) -> None:
    """Save so that a reader (or a crash) never meets half a file."""
    partial = path.with_suffix(".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, partial)
    partial.replace(path)


def train(
    path: Path, minutes: float, modules: nn.ModuleDict, peak_lr: float, loss_fn: Callable[[], Tensor]
) -> None:
    """Train `modules` on `loss_fn()` for `minutes` in all, resuming from and saving to the checkpoint `path`.

    The learning rate warms up over 200 steps, holds, and falls to zero along a cosine over the last 40 % of
    the budget. The checkpoint holds the live weights and their exponential moving average.
    """
    parameters = list(modules.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    state: dict = {"step": 0, "elapsed_s": 0.0}
    if path.exists():
        state = torch.load(path, weights_only=True)
        modules.load_state_dict(state["live"])
        optimizer.load_state_dict(state["optimizer"])
    live = modules.state_dict()
    average = {key: value.clone() for key, value in state.get("average", live).items()}
    floats = [key for key, value in live.items() if value.is_floating_point()]

    def save() -> None:
        snapshot = {"live": live, "average": average, "optimizer": optimizer.state_dict()}
        save_checkpoint(path, snapshot | {"step": step, "elapsed_s": elapsed_s})

    step, elapsed_s, smooth_loss, budget_s = state["step"], state["elapsed_s"], 0.0, 60 * minutes
    start_s, last_save_s = time.monotonic() - elapsed_s, elapsed_s
    bar = tqdm(total=round(budget_s), initial=round(elapsed_s), desc=path.stem, unit="s", mininterval=2.0)
    while elapsed_s < budget_s:
        descent = max(0.0, elapsed_s / budget_s - 0.6) / 0.4
        for group in optimizer.param_groups:
            group["lr"] = peak_lr * min(1.0, (step + 1) / 200) * 0.5 * (1 + math.cos(math.pi * descent))
        loss = loss_fn()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        keep = min(EMA_DECAY, (1 + step) / (10 + step))  # forget the first steps quickly
        with torch.no_grad():
            torch._foreach_lerp_([average[k] for k in floats], [live[k] for k in floats], 1 - keep)
        smooth_loss += (loss.item() - smooth_loss) * max(0.01, 1 / (step - state["step"]))
        elapsed_s = time.monotonic() - start_s
        bar.update(round(elapsed_s) - bar.n)
        bar.set_postfix(step=step, loss=f"{smooth_loss:.4f}", refresh=False)
        if elapsed_s - last_save_s > SAVE_EVERY_S:
            last_save_s = elapsed_s
            save()
    bar.close()
    if step > state["step"]:
        save()


def make_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE that makes every word of our prompts one token; any other text still has tokens."""
    texts = [template.format(name) for template in TEMPLATES for names in NAMES for name in names]
    words = set(" ".join(texts).replace("-", " ").split())
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for symbols in spelled.values() for pair in pairwise(symbols)):
        left, right = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append((left, right))
        for symbols in spelled.values():
            for i in range(len(symbols) - 2, -1, -1):
                if symbols[i : i + 2] == [left, right]:
                    symbols[i : i + 2] = [left + right]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's names of the 256 bytes
    alphabet = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*alphabet, *(symbol + "</w>" for symbol in alphabet), *(left + right for left, right in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def make_vae() -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return AutoencoderKL(sample_size=32, block_out_channels=(16, 32, 64), norm_num_groups=8, **blocks)


def make_denoiser(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    """The U-Net and the text encoder, which are trained together."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,  # diffusers reads this as the number of heads
        cross_attention_dim=64,
        norm_num_groups=16,
    )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS, **shape, **ids)
    return nn.ModuleDict({"unet": unet, "text_encoder": CLIPTextModel(config)})


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def train_vae(work: Path, pictures: Tensor, minutes: float) -> None:
    vae, indices = make_vae(), minibatches(len(pictures), 32)

    def loss_fn() -> Tensor:
        target = to_float(pictures[next(indices)])
        if random.random() < 0.5:
            target = target.flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(target.expand(-1, 3, -1, -1)).latent_dist
            output = vae.decode(posterior.sample()).sample
        error = output.float() - target  # [B, 3, 32, 32]
        edges = error.diff(dim=-1).abs().sum() + error.diff(dim=-2).abs().sum()  # asks for sharp edges
        per_picture = (error.abs().sum() + 0.5 * edges) / (3 * len(target))
        return (per_picture + KL_WEIGHT * posterior.kl().float().mean()) / 100

    train(work / "vae.pt", minutes, nn.ModuleDict({"vae": vae}), 2e-3, loss_fn)


def trained(path: Path, modules: nn.ModuleDict) -> dict:
    """Load the averaged weights of a checkpoint into `modules`; returns the checkpoint."""
    if not path.exists():
        raise SystemExit(f"{path} not found: run the {path.stem} stage first")
    state = torch.load(path, weights_only=True)
    modules.load_state_dict(state["average"])
    modules.eval().requires_grad_(False)
    return state


@torch.no_grad()
def encode_latents(work: Path, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Posterior mean and deviation `[N, 4, 8, 8]` of each picture, standardised; computed once."""
    path, vae = work / "latents.pt", make_vae()
    vae_step = trained(work / "vae.pt", nn.ModuleDict({"vae": vae}))["step"]
    if path.exists() and (latents := torch.load(path, weights_only=True))["vae_step"] == vae_step:
        return latents
    means, deviations = [], []
    for chunk in tqdm(pictures.split(64), desc="latents", mininterval=2.0):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(to_float(chunk).expand(-1, 3, -1, -1)).latent_dist
        means.append(posterior.mean.float())
        deviations.append(posterior.std.float())
    mean, std = torch.cat(means), torch.cat(deviations)
    center = mean.mean((0, 2, 3), keepdim=True)  # [1, 4, 1, 1]
    spread = ((mean - center).square() + std.square()).mean((0, 2, 3), keepdim=True).sqrt()
    latents = {"mean": (mean - center) / spread, "std": std / spread, "center": center, "spread": spread}
    latents |= {"labels": labels, "vae_step": vae_step}
    save_checkpoint(path, latents)
    return latents


@torch.no_grad()
def standardise(vae: AutoencoderKL, center: Tensor, spread: Tensor) -> None:
    """Fold the latents' measured mean and deviation into the 1x1 convolutions around them, exactly.

    Afterwards each latent channel has zero mean and unit variance, so the scaling factor is one.
    """
    center, spread, enter, leave = center.flatten(), spread.flatten(), vae.quant_conv, vae.post_quant_conv
    leave.bias += leave.weight[:, :, 0, 0] @ center
    leave.weight *= spread.view(1, -1, 1, 1)
    enter.bias[:4] = (enter.bias[:4] - center) / spread  # rows 0 to 3 are means, 4 to 7 log-variances
    enter.weight[:4] /= spread.view(-1, 1, 1, 1)
    enter.bias[4:] -= 2 * spread.log()
    vae.register_to_config(scaling_factor=1.0)


def train_unet(work: Path, latents: dict[str, Tensor], minutes: float) -> None:
    tokenizer, scheduler, batch_size = make_tokenizer(), make_scheduler(), 64
    modules = make_denoiser(tokenizer)
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weights = (MIN_SNR_GAMMA / snr).clamp(max=1.0)  # min(SNR, gamma) / SNR: the model predicts epsilon
    indices = minibatches(len(latents["mean"]), batch_size)

    def loss_fn() -> Tensor:
        index = next(indices)
        mean, std = latents["mean"][index], latents["std"][index]
        clean = mean + std * torch.randn_like(std)
        noise = torch.randn_like(clean)
        steps = torch.randint(0, len(weights), (batch_size,))
        rows = latents["labels"][index].clone()
        rows[torch.rand(batch_size) < CAPTION_DROPOUT] = UNCONDITIONAL
        prompts = [random.choice(TEMPLATES).format(random.choice(names)) for names in NAMES] + [""]
        tokens = tokenizer(prompts, padding="max_length", max_length=MAX_TOKENS, return_tensors="pt")
        context = modules["text_encoder"](tokens.input_ids)[0][rows]  # [B, 16, 64]; encodes 11 prompts, not B
        output = modules["unet"](scheduler.add_noise(clean, noise, steps), steps, context).sample
        return ((output - noise).square().mean(dim=(1, 2, 3)) * weights[steps]).mean()

    train(work / "unet.pt", minutes, modules, 1e-3, loss_fn)


def train_classifier(work: Path, data: Path, minutes: float) -> None:
    model, (pictures, labels) = FashionClassifier(), load_split(data, "train")
    indices = minibatches(len(pictures), 128)

    def loss_fn() -> Tensor:
        index = next(indices)
        shift = (random.randint(-1, 1), random.randint(-1, 1))  # the border is black: rolling only shifts
        images = to_float(pictures[index]).roll(shift, (-2, -1))
        return F.cross_entropy(model(images)[0], labels[index], label_smoothing=0.05)

    modules = nn.ModuleDict({"classifier": model})
    train(work / "classifier.pt", minutes, modules, 2e-3, loss_fn)
    trained(work / "classifier.pt", modules)
    pictures, labels = load_split(data, "t10k")
    guesses = torch.cat([model(to_float(chunk))[0].argmax(1) for chunk in pictures.split(500)])
    accuracy = (guesses == labels).double().mean().item()
    tqdm.write(f"classifier: {accuracy:.2%} of the test pictures")
    write_json(work / "classifier.json", model.config | {"test_accuracy": accuracy})


def replace_files(source: Path, target: Path) -> None:
    """Move each file of `source` over `target` in one step: a reader never meets half a file."""
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        destination = target / path.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        partial = destination.with_name(destination.name + ".partial")
        shutil.copyfile(path, partial)
        partial.replace(destination)
    shutil.rmtree(source)


def export(work: Path, out: Path) -> None:
    """Write the pipeline, and the classifier if it is trained, into the package as fp16 safetensors."""
    tokenizer, vae, staged = make_tokenizer(), make_vae(), work / "staged"
    shutil.rmtree(staged, ignore_errors=True)
    modules = make_denoiser(tokenizer)
    trained(work / "vae.pt", nn.ModuleDict({"vae": vae}))
    state = trained(work / "unet.pt", modules)
    latents = torch.load(work / "latents.pt", weights_only=True, mmap=True)
    standardise(vae, latents["center"], latents["spread"])
    text_encoder, unet = modules["text_encoder"].half(), modules["unet"].half()
    parts = (vae.half(), text_encoder, tokenizer, unet, make_scheduler(), None, None)
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipe.save_pretrained(staged / "fashion_sd")
    text_folder = staged / "fashion_sd" / "text_encoder"
    config = json.loads((text_folder / "config.json").read_text())
    config["dtype"] = "float32"  # transformers 5 loads in this type; diffusers loads the others in float32
    write_json(text_folder / "config.json", config)
    # Transformers 4 wants this prefix and the tokenizer's two older files; transformers 5 reads them as well.
    weights = load_file(text_folder / "model.safetensors")
    weights = {f"text_model.{name}": value for name, value in weights.items()}
    save_file(weights, text_folder / "model.safetensors", {"format": "pt"})
    bpe = json.loads((staged / "fashion_sd" / "tokenizer" / "tokenizer.json").read_text())["model"]
    write_json(staged / "fashion_sd" / "tokenizer" / "vocab.json", bpe["vocab"])
    merges = ["#version: 0.2", *(" ".join(pair) for pair in bpe["merges"]), ""]
    (staged / "fashion_sd" / "tokenizer" / "merges.txt").write_text("\n".join(merges))
    if (work / "classifier.json").exists():
        classifier = FashionClassifier()
        trained(work / "classifier.pt", nn.ModuleDict({"classifier": classifier}))
        (staged / "fashion_classifier").mkdir()
        save_file(classifier.half().state_dict(), staged / "fashion_classifier" / "model.safetensors")
        shutil.copyfile(work / "classifier.json", staged / "fashion_classifier" / "config.json")
    replace_files(staged, out)
    tqdm.write(f"exported step {state['step']}, trained {state['elapsed_s'] / 60:.0f} min, to {out}")


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    defaults = " ".join(f"{stage}={minutes:g}" for stage, minutes in DEFAULT_MINUTES.items())
    package = Path(parasample.models.__file__).parent
    add = parser.add_argument
    add("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)} (default: all four)")
    add("--minutes", type=float, help=f"budget of each stage named (default: {defaults})")
    add("--data", type=Path, default=DEBIAN_DATA, help="folder of the four .gz files (default: %(default)s)")
    add("--work", type=Path, default=Path("build/demo_model"), help="checkpoints (default: %(default)s)")
    add("--out", type=Path, default=package, help="where export writes (default: parasample/models)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, shuffling and noise (default: %(default)s)")
    args = parser.parse_args()
    stages = args.stages or STAGES
    if unknown := set(stages) - set(STAGES):
        parser.error(f"unknown stage {', '.join(unknown)}; choose from {', '.join(STAGES)}")
    minutes = {stage: args.minutes or default for stage, default in DEFAULT_MINUTES.items()}
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    if "vae" in stages or "unet" in stages:
        pictures, labels = load_split(args.data, "train")
    if "vae" in stages:
        train_vae(args.work, pictures, minutes["vae"])
    if "unet" in stages:
        train_unet(args.work, encode_latents(args.work, pictures, labels), minutes["unet"])
    if "classifier" in stages:
        train_classifier(args.work, args.data, minutes["classifier"])
    if "export" in stages:
        export(args.work, args.out)


if __name__ == "__main__":
    main()
