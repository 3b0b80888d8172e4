import subprocess
import sys

import workbench


def test_public_names_are_there() -> None:
    assert sorted(workbench.__all__) == sorted(workbench._HOMES)
    for name in workbench.__all__:
        assert getattr(workbench, name).__name__ == name


def test_the_kernels_side_never_imports_torch() -> None:
    code = (
        "import sys, workbench, workbench.run.api\n"
        "import workbench.telemetry.progress, workbench.cluster.session\n"
        "for name in workbench.__all__: getattr(workbench, name)\n"
        "heavy = {'torch', 'colossalai', 'transformers', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
