from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import resource, torch
from persona.memory import keep_freed_memory
torch.set_num_threads(1)
layers = [torch.nn.Conv2d(3, 24, 3), torch.nn.Hardswish(), torch.nn.Conv2d(24, 32, 3, stride=2)]
network = torch.nn.Sequential(*layers)
images = torch.randn(4, 3, 128, 128)

def faults(steps):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        network(images).square().mean().backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(4)
print(faults(4))
assert keep_freed_memory()
faults(4)
print(faults(4))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_freed_memory_is_used_again() -> None:
    """Training steps after the first few map hardly any page anew."""
    printed = subprocess.check_output([sys.executable, "-c", CODE], text=True)
    default, kept = map(int, printed.split())
    assert kept < 0.1 * default
