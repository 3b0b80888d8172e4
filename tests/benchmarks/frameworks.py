"""Each framework's data parallelism through ``workbench.train`` against its bare script; see ``plans.py``.

    python -m tests.benchmarks.frameworks [--ranks 2] [--pairs 3] [--steps 30]

DeepSpeed and MPI are those of ``workbench env create deepspeed`` and ``workbench env create mpi``.
"""

from __future__ import annotations

from tests.benchmarks import plans

PLANS = ("ddp", "torch-ddp", "deepspeed-zero1", "mpi")

if __name__ == "__main__":
    plans.main(__doc__, PLANS)
