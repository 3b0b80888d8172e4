"""What ``test_framework_torch`` runs, in a process of its own whose path has a ``colossalai`` that fails to import."""

from __future__ import annotations

from widgets.panel.panel import Panel
from workbench import Session, train

CELL = """
import torch
torch.manual_seed(1)
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
dataset = [(torch.ones(4) * n / 16, torch.zeros(2)) for n in range(16)]
criterion = torch.nn.MSELoss()
"""
LOADED = "import sys; loaded = sorted(name for name in sys.modules if name.startswith('colossalai'))"


def main() -> None:
    session = Session.up(2, framework="torch", devices="cpu")
    run = train({"framework": "torch", "steps": 6, "batch_size": 4, "save_every": 3, "name": "bare"}, cell=CELL)
    run.wait()
    assert run.status == "finished", run.status
    session.execute(LOADED)
    assert session.pull("loaded") == {0: [], 1: []}
    losses = run.metrics()["loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    assert run.plan.describe() == "torch ddp2"
    assert run.checkpoints() == [3, 6]
    assert "torch ddp" in run.report().read_text()
    Panel(run).close()
    sharded = train({"plan": "fsdp2", "resume": f"{run.path}@3", "steps": 6, "save_every": 0, "name": "sharded"})
    sharded.wait()
    assert sharded.status == "finished", sharded.status
    assert sharded.plan.describe() == "fsdp2"
    assert abs(sharded.metrics()["loss"].iloc[-1] - losses.iloc[-1]) < 1e-6, "the optimizer's state moved too"
    session.execute(LOADED)
    assert session.pull("loaded") == {0: [], 1: []}
    session.down()
    print("DONE")


if __name__ == "__main__":
    main()
