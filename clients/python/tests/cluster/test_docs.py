"""The examples of the documentation, run as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[4] / "docs" / "clients.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_does_what_it_says(number: int) -> None:
    example = EXAMPLES[number].replace('namespace="agents"', f"namespace={os.environ['AGENTSANDBOX_NAMESPACE']!r}")
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", example], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
