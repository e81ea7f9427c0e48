from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, sys, torch
from persona.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
torch.set_num_threads(1)
layers = [torch.nn.Conv2d(3, 24, 3), torch.nn.Hardswish(), torch.nn.Conv2d(24, 32, 3, stride=2)]
network = torch.nn.Sequential(*layers)
images = torch.randn(16, 3, 128, 128)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        network(images).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(4)
print(faults(4))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_freed_memory_is_used_again() -> None:
    """Training steps after the first few map hardly any page anew."""
    faults = {
        mode: int(subprocess.check_output([sys.executable, "-c", CODE, mode], text=True))
        for mode in ("keep", "default")
    }
    assert faults["keep"] < 0.1 * faults["default"], faults
