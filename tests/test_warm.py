"""Forked programs start like new ones: they inherit no compiled code and no hooks of this process."""

import subprocess
import sys

import torch

COMPILE = """
import sys

import torch

def note(graph, inputs):
    print([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)], len(inputs))
    return graph

torch.compile(torch.nn.functional.normalize, backend=note)(torch.ones(5, 4))
print(sys.excepthook is sys.__excepthook__)
"""


def test_a_child_does_not_inherit_dynamic_sizes_or_hooks(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", lambda *error: None)
    for size in (2, 3):
        torch.compile(torch.nn.functional.normalize, backend="eager")(torch.ones(size, 4))
    done = subprocess.run([sys.executable, "-c", COMPILE], text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == ["[(5, 4)] 1", "True"]
