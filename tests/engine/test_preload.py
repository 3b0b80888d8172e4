"""The warm process: one thread, nothing of CUDA, and a user's own imports find the real packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
import json, os, sys, threading
from workbench.engine.frameworks.colossal.startup.preload import load
load()
import torch
kept = [name for name in ("peft", "bitsandbytes", "sklearn", "pandas", "deepspeed") if name in sys.modules]
tasks, python_threads = len(os.listdir("/proc/self/task")), threading.active_count()
from colossalai.booster.plugin import torch_ddp_plugin
late = torch_ddp_plugin.PeftModel
from peft import PeftModel, LoraConfig, get_peft_model
class Wrapped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
lora = get_peft_model(Wrapped(), LoraConfig(target_modules=["inner"]))
print(json.dumps({
    "kept": kept, "tasks": tasks, "threads": python_threads, "torch_threads": torch.get_num_threads(),
    "cuda": torch.cuda.is_initialized(), "peft": PeftModel.__module__,
    "isinstance": [isinstance(lora, late), isinstance(torch.nn.Linear(1, 1), late)],
}))
"""


#: as DeepSpeed, which transformers imports where it is installed: its tuner's packages start threads
_STARTS_A_THREAD = "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory of installed packages: one that starts a thread when it is imported."""
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text(_STARTS_A_THREAD)
    (tmp_path / "deepspeed-9.0.0.dist-info").mkdir()
    (tmp_path / "deepspeed-9.0.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: deepspeed\nVersion: 9.0.0"
    )
    return tmp_path


def test_preload(packages: Path):
    places = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kept"] == []
    assert (found["tasks"], found["threads"], found["torch_threads"]) == (1, 1, 1)
    assert not found["cuda"]
    assert found["peft"] == "peft.peft_model"
    assert found["isinstance"] == [True, False], "Colossal-AI knows the user's LoRA model for what it is"
