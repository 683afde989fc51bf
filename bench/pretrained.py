"""Seconds from a pretrained model's files to its weights on a device: opening, hashing, loading.

    python bench/pretrained.py [--full] [--file MODEL]

Writes a model of random weights in bfloat16, as safetensors (with `--full` of SmolLM2-135M's shape), or takes a folder
or a GGUF file. `open_s` reads config and headers, `digest_s` every byte, `load_s` every weight as float32. Each figure
has its share of processor time (`_cpu_s`): on a busy machine that is the steadier one.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from _measure import keep, origin, results_file, size_options, spread
from pit.config import MeshConfig, ModelConfig
from pit.model.decoder import Decoder
from pit.model.params import abstract
from pit.model.pretrained import Pretrained, save_pretrained
from pit.model.sharding import make_mesh

SMALL = ModelConfig(width=256, layers=6, heads=4, kv_heads=2, head_dim=64, mlp=768), 8_192
SMOLLM2 = ModelConfig(width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp=1536, rope_theta=1e5), 49_152
"""Shape and vocabulary."""


def write(folder: Path, full: bool) -> Path:
    """Write a model of random weights and return its folder."""
    config, vocabulary = SMOLLM2 if full else SMALL
    rng, shapes = np.random.default_rng(0), abstract(Decoder, config, vocabulary)[1]
    params = {name: jnp.asarray(rng.standard_normal(x.shape, np.float32)) for name, x in shapes.items()}
    save_pretrained(folder, config, params, vocabulary, dtype="bfloat16")
    return folder


def measure(path: Path, rounds: int) -> dict[str, Any]:
    """Return figures of a model; the first round warms the file cache and is left out."""
    mesh = make_mesh(MeshConfig())
    seconds: dict[str, list[float]] = {}

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        begin, cpu = time.perf_counter(), time.process_time()
        result = call(*arguments)
        if name == "load":
            jax.block_until_ready(result.params)
        seconds.setdefault(f"{name}_s", []).append(time.perf_counter() - begin)
        seconds.setdefault(f"{name}_cpu_s", []).append(time.process_time() - cpu)
        return result

    weights = 0
    for _ in range(1 + rounds):
        pretrained = timed("open", Pretrained.open, path)
        timed("digest", getattr, pretrained, "digest")
        weights = sum(value.size for value in timed("load", pretrained.load, mesh).params.values())
    figures: dict[str, Any] = {name: spread(np.array(values[1:])) for name, values in seconds.items()}
    files = sum(file.stat().st_size for file in pretrained.source.files().values())
    return {"weights": weights, "bytes": files, "dequantised": list(pretrained.dequantised)} | figures


def main() -> None:
    """Measure and report the figures of one model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a folder or a GGUF file [random weights]")
    parser.add_argument("--rounds", type=int, default=3, help="timed calls of each kind [3]")
    size_options(parser, "pretrained")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = options.file or write(Path(folder) / "model", options.full)
        figures = measure(path, options.rounds) | origin(0, options.rounds)
    name = options.file.name if options.file else ("smollm2-135m" if options.full else "small")
    parts = ", ".join(
        f"{part} {figures[f'{part}_s']['median']:.2f} s ({figures[f'{part}_cpu_s']['median']:.2f} s of processor time)"
        for part in ("open", "digest", "load")
    )
    summary = f"{name}: {figures['weights'] / 1e6:.0f} million weights from {figures['bytes'] / 1e6:.0f} MB: {parts}"
    keep(results_file(options, "pretrained"), {name: figures}, summary)


if __name__ == "__main__":
    main()
