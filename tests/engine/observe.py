"""Observe the real engines in one process group, because starting DeepSpeed takes seconds; see fixture `observed`."""

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import deepspeed
import timm
import torch
import torch.nn.functional as F
from deepspeed.utils import z3_leaf_module
from torch import nn

from tests.checkpoint import test_failing_saves
from tests.engine import observe_graphs, observe_pace, observe_terms, observe_whole, tiny
from tests.engine.observe_terms import equal, save
from tests.engine.twin import DeepSpeedsOwn
from tests.train import test_log
from vitkd_ds.cli import parse_run
from vitkd_ds.data.images import open_images
from vitkd_ds.engine import processes, ranks
from vitkd_ds.engine.flat import FlatBlock
from vitkd_ds.engine.student import StudentEngine
from vitkd_ds.engine.teacher import FeatureModule
from vitkd_ds.models.features import tap_features
from vitkd_ds.train import inputs, loop
from vitkd_ds.train.step import NonFiniteError

STEPS = 5


def weights_after(engine):
    return [engine.student_weights()[name].tolist() for name in ("head.bias", "blocks.2.norm1.weight")]


def weights_of(engine):
    """Return checksums of all fp32 weights of student and losses by name, for our engine or DeepSpeed's."""
    weights = tiny.all_weights(engine) if isinstance(engine, StudentEngine) else engine.weights()
    return {name: zlib.crc32(value.contiguous().numpy().tobytes()) for name, value in weights.items()}


def observe_training(seen):
    """Record totals, norms and weights of the same updates with our engine, DeepSpeed's and plain torch."""
    start = dict(tiny.make_models()[0].named_parameters())
    for precision, run in (("bf16", tiny.RUN), ("fp32", tiny.FP32_RUN)):
        for accumulation in (1, 4):
            engine, teacher = tiny.make_engine(run, accumulation=accumulation)
            seen[f"{precision} starts in fp32"] = equal(start, engine.student_weights())
            for who, trained in (("ours", engine), ("deepspeed", None)):
                trained = trained or DeepSpeedsOwn(run, precision, accumulation=accumulation)
                losses = tiny.train(trained, teacher, steps=STEPS, accumulation=accumulation)
                seen[f"{precision} {who} {accumulation}"] = [*losses, weights_of(trained)]
    seen["fp32 plain torch"] = tiny.train_plainly(steps=STEPS)
    mixed, _ = tiny.make_engine(tiny.AUTOCAST_RUN)
    seen["autocast ours"] = tiny.train(mixed, teacher, steps=STEPS)
    seen["autocast plain torch"] = tiny.train_plainly(steps=STEPS, autocast=True)
    seen["autocast dtypes"] = sorted({str(p.dtype) for p in mixed.engine.module.parameters()})
    exported = tiny.make_models()[0]
    exported.load_state_dict(engine.student_weights(), strict=True)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        trained = tiny.put_weights(engine).eval()(images)
        seen["exported logits"] = torch.equal(exported.eval()(images), trained)


def observe_flat(seen, folder):
    """Compare with DeepSpeed: many flat parameters, a weight longer than a bucket, overlap, random draws in between."""
    for name, zero in (("few", {}), ("many", {"reduce_bucket_size": 3000}), ("overlap", {"overlap_comm": True})):
        config = json.loads(Path(tiny.FP32_RUN.ds_config).read_text())
        config["zero_optimization"] |= zero
        file = folder / f"{name}{ranks.rank()}.json"
        file.write_text(json.dumps(config))
        engine, teacher = tiny.make_engine(replace(tiny.FP32_RUN, ds_config=str(file)))
        tiny.set_drop_path(engine.distiller.student, 0.3)
        seen[f"flat {name}"] = [*tiny.train(engine, teacher), weights_of(engine)]
        seen[f"flat sizes {name}"] = [flat.numel() for flat in engine.engine.module.parameters()]
    twin = DeepSpeedsOwn(tiny.FP32_RUN, "fp32", drop_path=0.3)
    seen["flat deepspeed"] = [*tiny.train(twin, teacher), weights_of(twin)]


def observe_nonfinite_updates(seen, name, run):
    """Make three updates with NaN labels on the last rank in the second one; read the outcomes only at the end."""
    engine, teacher = tiny.make_engine(run)
    for group in engine.engine.basic_optimizer.param_groups:
        group["fused"] = name == "fused"  # as on a GPU
    images_BCHW, targets_BK = tiny.make_batch(8)
    engine.set_lr(1e-3)
    outcomes, weights = [], [weights_after(engine)]
    for step in range(3):
        is_bad = step == 1 and ranks.rank() == ranks.world_size() - 1
        targets = targets_BK * float("nan") if is_bad else targets_BK
        engine.backward(tiny.forward(engine, teacher, images_BCHW, targets, engine.dtype)["total"])
        outcomes.append(engine.step())
        weights.append(weights_after(engine))
    seen[f"{name} updates applied, on each rank"] = ranks.from_all([outcome.is_applied for outcome in outcomes])
    seen[f"{name} norms finite"] = [outcome.grad_norm == outcome.grad_norm for outcome in outcomes]
    seen[f"{name} weights moved"] = [before != after for before, after in zip(weights, weights[1:])]
    seen[f"{name} weights finite"] = bool(torch.isfinite(torch.tensor(weights[-1][0])).all())


def observe_checkpointing(seen):
    for checkpointed in (False, True):
        engine, teacher = tiny.make_engine(tiny.FP32_RUN)
        engine.distiller.student.set_grad_checkpointing(checkpointed)
        seen[f"checkpointed {checkpointed}"] = [*tiny.train(engine, teacher), weights_after(engine)]


def observe_teacher(seen):
    """Compare the placements with the plain model in bf16, and record how much of each a rank holds."""
    linear_before = F.linear
    images_BCHW, targets_BK = tiny.make_batch(8)
    plain, images = tiny.make_models()[1].bfloat16(), tiny.NORMALIZATION.apply(images_BCHW, torch.bfloat16)
    with torch.no_grad():
        expected = tap_features(plain, images, maps=tiny.AttentionMaps(plain, (0, -1)))
    engine, _ = tiny.make_engine(tiny.RUN)
    images = tiny.NORMALIZATION.apply(images_BCHW, engine.dtype)
    for placement in ("shard", "offload", "replica"):
        teacher = tiny.make_teacher(placement)
        found, parameters = teacher(images_BCHW), list(teacher.module.parameters())
        seen[f"{placement} equal"] = [
            torch.equal(a, b) for a, b in zip(tiny.tensors(found), tiny.tensors(expected), strict=True)
        ]
        seen[f"{placement} requires_grad"] = any(tensor.requires_grad for tensor in (*parameters, found.logits_BK))
        torch.manual_seed(0)
        with torch.no_grad():
            terms = engine(images, targets_BK, {"teacher": found}, tiny.weights_of_terms())
        seen[f"{placement} total"] = terms["total"].item()
        teacher.module.train()
        for module in teacher.module.modules():
            module.training = True
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.9
        seen[f"{placement} equal after train()"] = torch.equal(teacher(images_BCHW).logits_BK, expected.logits_BK)
        if placement != "replica":
            seen[f"{placement} live"] = sum(p.numel() for p in parameters)
            seen[f"{placement} held"] = sum(p.ds_tensor.numel() for p in parameters)
            seen[f"{placement} padding"] = len(parameters)
            seen["all"] = sum(p.ds_numel for p in parameters)
        if placement == "shard":
            seen["leaf modules"] = [z3_leaf_module(block) for block in teacher.module.module.model.blocks]
    seen["term dtypes"] = sorted({str(value.dtype) for value in terms.values()})
    seen["total is the sum"] = abs(terms["total"] - sum(v for k, v in terms.items() if k != "total")).item()
    seen["linear is torch's own"] = F.linear is linear_before


def gathered_ahead(*, prefetch, live):
    """Return how much of a sharded toy model is gathered when its first block starts; limits in blocks."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 40, "num_heads": 2, "num_classes": 10}
    model = timm.create_model("deit_tiny_patch16_224", **size).requires_grad_(False)
    model.blocks = nn.Sequential(*(FlatBlock(block, compile="off") for block in model.blocks))
    sizes = [p.numel() for p in model.blocks[0].parameters()]
    embedding = sum(p.numel() for p in [*model.patch_embed.parameters(), model.cls_token, model.pos_embed])
    zero = {
        "stage": 3, "memory_efficient_linear": False, "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": prefetch * sum(sizes), "stage3_max_live_parameters": live * sum(sizes),
        "leaf_module": {"classes": ["vitkd_ds.engine.flat.FlatBlock"]},
    }  # fmt: skip
    config = {"train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": True}, "zero_optimization": zero}
    config |= {"steps_per_print": None}
    engine, *_ = deepspeed.initialize(model=FeatureModule(model, tiny.LOSSES.needs), config=config)
    gathered = []

    def count(*_):
        gathered.append(sum(p.ds_numel for p in model.parameters() if p.ds_status.name != "NOT_AVAILABLE"))

    model.blocks[0].register_forward_pre_hook(count)
    engine.eval()
    with torch.no_grad():
        for _ in range(3):  # it gathers ahead when it has seen the order of the modules
            engine(torch.zeros(2, 3, 32, 32, dtype=torch.bfloat16))
    return {"block": sum(sizes), "largest": max(sizes), "embedding": embedding, "gathered": gathered[-1]}


def observe_average(seen, folder):
    """Compare the moving average with a slow implementation, and check its checkpoint."""
    decay = 0.9
    run = replace(tiny.FP32_RUN, optim=replace(tiny.RUN.optim, ema_decay=decay))
    engine, teacher = tiny.make_engine(run)
    average = {name: value.double() for name, value in engine.student_weights(average=False).items()}
    for _ in range(3):
        tiny.train(engine, teacher, steps=1)
        raw = engine.student_weights(average=False)
        average = {name: decay * average[name] + (1 - decay) * raw[name].double() for name in average}
    found = engine.student_weights()
    seen["average error"] = max((found[name] - average[name]).abs().max().item() for name in average)
    seen["raw weights untouched"] = equal(engine.student_weights(average=False), raw)
    seen["average differs from raw"] = not equal(found, raw)
    saved = save(engine.state_files(), folder / "step00000003")
    seen["checkpoint files"] = sorted(p.name for p in saved.iterdir())
    restored, _ = tiny.make_engine(run)
    restored.load(saved)
    for average_too in (True, False):
        before, after = (each.student_weights(average=average_too) for each in (engine, restored))
        seen[f"restored average={average_too}"] = equal(before, after)
    own = DeepSpeedsOwn(run, "fp32")
    own.load(folder, saved.name)
    seen["continued by DeepSpeed's own"] = [*tiny.train(own, teacher, steps=2), weights_of(own)]
    seen["continued"] = [*tiny.train(restored, teacher, steps=2), weights_of(restored)]
    seen["uninterrupted"] = [*tiny.train(engine, teacher, steps=2), weights_of(engine)]
    back, _ = tiny.make_engine(run)
    back.load(save(own.state_files(), folder / "step00000005"))
    seen["back from DeepSpeed's own"] = weights_of(back)
    ours, theirs = engine.state_files(), own.state_files()
    seen["files as DeepSpeed's own"] = ranks.from_all({name: differences(ours[name], theirs[name]) for name in theirs})
    module = torch.load(saved / "mp_rank_00_model_states.pt")["module"]
    seen["saved parts"] = sorted({name.split(".")[0] for name in module})


def differences(ours, theirs, path=""):
    """Return the paths of all differences between two nested values."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and set(ours) == set(theirs):
        return [found for key in theirs for found in differences(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(theirs, (list, tuple)) and isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
        return [found for i, pair in enumerate(zip(ours, theirs)) for found in differences(*pair, f"{path}/{i}")]
    same = torch.equal(ours, theirs) if torch.is_tensor(theirs) else repr(ours) == repr(theirs)
    return [] if same else [path]


def observe_agreement(seen):
    """Record how an error on one rank reaches each rank."""

    def told(agree, number, error):
        def function():
            if ranks.rank() == number:
                raise error
            return ranks.rank()

        try:
            return agree(function)
        except Exception as error_here:
            return f"{type(error_here).__name__}: {error_here}"

    ran = []
    ranks.on_main(lambda: ran.append(ranks.rank()))
    seen["agreement"] = ranks.from_all({
        "ran": ran, "flags": [ranks.all_true(ranks.rank() == number, torch.device("cpu")) for number in (0, 1)],
        "true": ranks.all_true(True, torch.device("cpu")),
        "main": [told(ranks.on_main, number, KeyError("x")) for number in (0, 1)],
        "all": [ranks.together(ranks.rank), ranks.on_main(lambda: ranks.rank() + 5), ranks.failures(ranks.rank)],
        "together": [told(ranks.together, 1, error) for error in (ValueError("no file"), OSError("gone"))],
        "failures": told(ranks.failures, 1, OSError("disk full")),
    })  # fmt: skip


def observe_nonfinite_loss(seen, workdir):
    """Make rank 1's labels NaN at the third update, and record the error that stops each rank."""
    flags = {"recipe": "demo_plain", "debug": "true", "workdir": str(workdir), "checkpoint.every_steps": "2"}
    mix_step, labels, run = inputs.mix_step, [], parse_run((), flags)

    def poisoned(*args, step, place, **out):
        images_BCHW, targets_BK = mix_step(*args, step=step, place=place, **out)
        if step == 2:
            labels.extend(args[2].tolist())
        return images_BCHW, targets_BK * float("nan") if step == 2 and ranks.rank() == 1 else targets_BK

    inputs.mix_step = poisoned
    try:
        loop.train(run)
        told = "no rank noticed"
    except NonFiniteError as error:
        told = str(error)
    seen["nonfinite"] = ranks.from_all(told)
    seen["nonfinite is done"] = (workdir / "done").exists()
    found = json.loads((workdir / "nonfinite" / "step00000003.json").read_text())
    stored = open_images(run.data, split="train", seed=0, micro_batch_size=1).labels
    found["labels of its images"] = [stored[numbers].tolist() for numbers in found["images"]["ranks"]]
    seen["nonfinite file"] = found | {"labels that were seen": ranks.from_all(labels)}


def main():
    folder = Path(sys.argv[1])
    processes.start_processes()
    torch.set_num_threads(1)
    seen = {}
    observe_training(seen)
    averaged = replace(tiny.RUN, optim=replace(tiny.RUN.optim, ema_decay=0.5))
    for name, run in (("bf16", tiny.RUN), ("fp32", tiny.FP32_RUN), ("fused", averaged)):
        observe_nonfinite_updates(seen, name, run)
    observe_terms.observe(seen, folder)
    observe_checkpointing(seen)
    observe_flat(seen, folder)
    observe_teacher(seen)
    for each in (observe_pace, observe_whole, observe_graphs):
        each.observe(seen)
    if ranks.world_size() == 2:
        observe_agreement(seen)
        test_log.observe(seen)
        observe_average(seen, folder)
        seen["gathered ahead"] = [gathered_ahead(prefetch=3, live=live) for live in (1000, 2)]
        test_failing_saves.observe(seen, folder / "saves")
        observe_nonfinite_loss(seen, folder / "nonfinite")
    if ranks.rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    processes.leave()


if __name__ == "__main__":
    main()
