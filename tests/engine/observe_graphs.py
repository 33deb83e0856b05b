"""Ask torch's manager of CUDA graphs, without a GPU, which calls of a new run free earlier results; see `observed`."""

from dataclasses import replace
from unittest import mock

import torch
from torch._inductor.cudagraph_trees import CUDAGraphTreeManager, MarkStepBox

from tests.engine import tiny


def observe(seen):
    """Record, for two micro-batches of a new process without and with calls of the teacher before, whether the teacher
    and the student free what earlier calls returned. With CUDA graphs, the student's call would free its inputs."""
    for name, num_checks in (("resumed", 0), ("new", 2)):
        with mock.patch.object(MarkStepBox, "mark_step_counter", 0):
            seen[f"graphs of a {name} run free"] = frees(num_checks)


def frees(num_checks):
    manager = object.__new__(CUDAGraphTreeManager)
    manager.current_gen = None
    manager.running_forwards_with_pending_backwards = False
    found = []

    def backend(name):
        def compile_graph(graph, inputs):
            def run(*args):
                found.append((name, manager.can_start_new_generation()))  # asked before a graph is recorded or replayed
                manager.update_generation()  # as after each graph
                return graph.forward(*args)

            return run

        return compile_graph

    engine, _ = tiny.make_engine(replace(tiny.RUN, compile="off"))
    teacher = tiny.make_teacher("replica")
    teacher.module.compile(backend=backend("teacher"))
    engine.engine.module.compile(backend=backend("student"))
    images_BCHW, targets_BK = tiny.make_batch(8)
    for _ in range(num_checks):
        teacher(images_BCHW)
    found.clear()
    for _ in range(2):
        features = {"teacher": teacher(images_BCHW)}
        images = tiny.NORMALIZATION.apply(images_BCHW, engine.dtype)
        engine.backward(engine(images, targets_BK, features, tiny.weights_of_terms())["total"])
    torch._dynamo.reset()
    return found
