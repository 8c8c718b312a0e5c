"""The package as it is installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2]


def python(*arguments: str | Path, path: Path | None = None) -> str:
    command, environment = [sys.executable, *arguments], os.environ | {"PYTHONPATH": str(path or "")}
    done = subprocess.run(command, check=False, cwd=path or FOLDER, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_installs_all_of_the_package(tmp_path: Path) -> None:
    built, installed = tmp_path / "built", tmp_path / "installed"
    python("-m", "hatchling", "build", "--target", "wheel", "--directory", built)
    (wheel,) = built.iterdir()
    python("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", installed, wheel)
    sources = {path.name for path in (FOLDER / "src" / "agentsandbox").iterdir() if path.is_file()}
    assert "py.typed" in sources
    assert sources <= {path.name for path in (installed / "agentsandbox").iterdir()}
    program = (
        "import agentsandbox, importlib.metadata, json\n"
        "print(json.dumps([agentsandbox.__file__, agentsandbox.Client.__module__, "
        "importlib.metadata.requires('agentsandbox')]))"
    )
    file, module, needs = json.loads(python("-W", "error", "-c", program, path=installed))
    assert file == str(installed / "agentsandbox" / "__init__.py")
    assert module == "agentsandbox.client"
    assert sorted(need.partition(">")[0].lower() for need in needs) == ["httpx2", "pyyaml", "websockets"]
