"""Memory of a rank that begins from a local Hugging Face directory: ``pretrained = DIR`` and ``from_pretrained``.

A Llama of about ``--millions`` million weights is written once, in bfloat16. Then, for each plan and each of both
ways, two ranks build the model and hand it to the plan; no step is trained. Printed per rank: the largest resident
memory since before the model was built, in MiB, that of the process alone (``RssAnon``) and all (with pages of files,
which the ranks of a host share), and what is left once the plan has the model::

    python -m tests.benchmarks.pretrained --millions 100
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from pathlib import Path
from typing import Any

from tests.engine.rank_pool import RankPool

PLANS: dict[str, dict[str, Any]] = {
    "tp 2": {"plugin": "hybrid", "tp": 2},
    "pp 2": {"plugin": "hybrid", "pp": 2, "micro_batches": 2},
    "zero2": {"plugin": "zero2"},
}
WAYS = {
    "pretrained": 'pretrained = "{path}"\noptimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.1)\n',
    "from_pretrained": "from transformers import AutoModelForCausalLM\n"
    'model = AutoModelForCausalLM.from_pretrained("{path}", torch_dtype=torch.float32)\n'
    "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n",
}
CELL = """
ids = torch.arange(4 * 16).reshape(4, 16)
dataset = [{"input_ids": i, "labels": i} for i in ids]
criterion = lambda outputs, batch: outputs.loss
"""
_EVERY_S = 0.002


def _resident() -> tuple[float, float]:
    """This process's own and whole resident memory in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    values = {name: text for name, _, text in (line.partition(":") for line in lines)}
    return tuple(int(values[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))  # type: ignore[return-value]


class _Peak:
    """The largest resident memory while it is entered, beyond that before."""

    def __enter__(self) -> _Peak:
        self._before, self._highest, self._done = _resident(), _resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_S):
            self._highest = tuple(map(max, self._highest, _resident()))

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def found(self) -> list[float]:
        """Own and whole at the highest, own and whole now."""
        pairs = zip((*self._highest, *_resident()), self._before * 2, strict=True)
        return [value - before for value, before in pairs]


def prepare(rank: int, ranks: int, directory: Path, *, cell: str, options: dict[str, Any]) -> list[float]:
    """Build the cell's workload and hand it to the plan; what ``_Peak.found`` returns."""
    from workbench.core.config import TrainSpec
    from workbench.engine.entry import joined_of, load_strategy
    from workbench.engine.frameworks.torch_common.cells.workload import workload_from_cell

    spec = TrainSpec.from_options(options)
    strategy = load_strategy(spec)(spec, rank)
    file = directory / f"cell-{rank}.py"
    file.write_text(cell, encoding="utf-8")
    with joined_of(spec)(rank, ranks, directory):
        import transformers.models.llama.modeling_llama  # noqa: F401 - not a part of what is measured

        with _Peak() as peak:
            workload = workload_from_cell(file, spec)
            strategy.check(spec, workload)
            strategy.prepare(workload)
        found = peak.found()
        strategy.close()
    return found


def write_model(path: Path, millions: int) -> float:
    """Write a Llama of so many million weights; the size of its file in MiB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, vocabulary = 768, 16_000
    per_layer = 4 * hidden**2 + 3 * hidden * 2048
    layers = max(2, 2 * round((millions * 1e6 - 2 * vocabulary * hidden) / per_layer / 2))
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=2048, num_hidden_layers=layers,
        num_attention_heads=12, max_position_embeddings=128, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        size = write_model(path, arguments.millions)
        print(f"weights: {2 * size:.0f} MiB in float32; MiB per rank, the largest of two ranks")
        print(f"{'plan':6} {'way':16} {'peak own':>9} {'peak all':>9} {'left own':>9} {'left all':>9}")
        with RankPool() as pool:  # which forks new processes for each
            for plan, options in PLANS.items():
                for way, source in WAYS.items():
                    cell = "import torch\n" + source.replace("{path}", str(path)) + CELL
                    asked = {"ranks": 2, "batch_size": 4, **options}
                    found = pool.run(2, "tests.benchmarks.pretrained:prepare", cell=cell, options=asked)
                    most = [max(values) for values in zip(*found, strict=True)]
                    print(f"{plan:6} {way:16} " + " ".join(f"{value:9.0f}" for value in most), flush=True)


if __name__ == "__main__":
    main()
