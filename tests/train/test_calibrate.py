"""Statistics of the teacher's features: against plain means over the same images, on one rank and two, and resumed."""

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import finish_ranks, start_ranks
from tests.threaded import on_ranks
from tests.train.test_teacher_check import micro_batches_of
from vitkd_ds.cli import parse_run
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import leave, start_processes
from vitkd_ds.losses.feature import Target
from vitkd_ds.models.build import without_fused_attention
from vitkd_ds.models.features import tap_features
from vitkd_ds.recipes import build_run
from vitkd_ds.train import loop
from vitkd_ds.train.calibrate import Sums, calibrate, fix
from vitkd_ds.train.mixing import mix_step
from vitkd_ds.train.parts import build_models, build_parts

FLAGS = {
    "recipe": "demo", "debug": "true", "losses.nkd.weight": "0", "losses.vitkd.weight": "0",
    "augment.mixup_alpha": "0.5", "losses.feature.weight": "1", "losses.feature.calibration_batches": "3",
    "teacher.placement": "replica",
    "global_batch_size": "24", "micro_batch_size_per_gpu": "12",
}  # fmt: skip


def expected_statistics(run, device):
    """Mean and standard deviation of the bf16 teacher's features of the first images, by plain means over all of them.
    Mean and standard deviation of the bf16 teacher's features of the first images, by plain means over all of them."""
    parts = build_parts(run, device)
    teacher = build_models(run).teachers["teacher"].to(torch.bfloat16)
    without_fused_attention(teacher)
    found = {"pooled": [], "patches": []}
    with closing(parts.train_loader.epoch(0)) as micro_batches:
        for place in range(3):
            images, labels = next(micro_batches)
            images, _ = mix_step(run, images, labels, step=0, place=place * ranks.world_size() + ranks.rank())
            with torch.no_grad():
                features = tap_features(teacher, parts.normalization.apply(images, torch.bfloat16), ())
            found["pooled"].append(features.pooled_BD.double())
            found["patches"].append(features.final_BPD.double().flatten(0, 1))
    everything = {kind: torch.tensor(sum(ranks.from_all(torch.cat(each).tolist()), [])) for kind, each in found.items()}
    return {kind: (values.mean(0), values.std(0, correction=0)) for kind, values in everything.items()}


def main(folder):
    device = start_processes()
    torch.set_num_threads(1)
    run = parse_run((), FLAGS | {"workdir": str(folder / "run")})
    parts = build_parts(run, device)
    calibrate(parts)
    targets = parts.engine.distiller.feature.targets
    seen = {}
    for kind, (mean, deviation) in expected_statistics(run, device).items():
        seen[f"{kind} mean"] = (targets[kind].mean_D - mean).abs().max().item() / mean.abs().max().item()
        scale = targets[kind].transform_DD.diagonal()
        seen[f"{kind} scale"] = (scale * deviation - 1).abs().max().item()
        seen[f"{kind} off the diagonal"] = (targets[kind].transform_DD - torch.diag(scale)).abs().max().item()
    calls, own = [], loop.calibrate
    loop.calibrate = lambda parts: (calls.append(1), own(parts))
    loop.train(replace(run, max_steps=2))
    loop.train(replace(run, max_steps=4, extend=True))
    seen["calls"] = len(calls)
    if ranks.rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))
    leave()


def test_sums_give_mean_and_covariance_of_values_far_from_0():
    values = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(0)).double() + 1e6
    sums = Sums(values[0])
    for micro_batch in values:
        sums.add(micro_batch)
    mean, covariance = sums.mean_and_covariance()
    torch.testing.assert_close(mean, values.flatten(0, 1).mean(0))
    torch.testing.assert_close(covariance, values.flatten(0, 1).T.cov(correction=0), rtol=1e-6, atol=1e-9)


class Kept(torch.nn.Module):
    """A target that records its inputs. Its sign is arbitrary, like an eigenvector's."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign
        self.register_buffer("mean_D", torch.zeros(2))
        self.register_buffer("covariance_DD", torch.zeros(2, 2))

    def fix(self, mean_D, covariance_DD):
        self.mean_D.copy_(self.sign * mean_D)
        self.covariance_DD.copy_(covariance_DD)


def test_unequal_shares_give_the_statistics_of_all_and_every_rank_has_those_of_rank_0():
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0]) + 100
    shares = values[:2], values[2:5], values[5:]

    def on_rank(rank):
        sums, target = Sums(shares[rank]), Kept(sign=(-1) ** rank)
        sums.add(shares[rank])
        fix(target, sums, where="here")
        return sums.shift_D, target.mean_D, target.covariance_DD

    for shift_D, mean_D, covariance_DD in on_ranks(3, on_rank):
        torch.testing.assert_close(shift_D, torch.stack([share.double().mean(0) for share in shares]).mean(0))
        torch.testing.assert_close(mean_D, values.mean(0))
        torch.testing.assert_close(covariance_DD, values.T.cov(correction=0), rtol=1e-4, atol=1e-4)


def test_images_unreadable_on_one_rank_end_the_calibration_on_all():
    module = torch.nn.Module()
    module.num_calibrating = 1
    schedule = SimpleNamespace(steps_per_epoch=1, accumulation_steps=1)

    def on_rank(rank):
        loader = SimpleNamespace(epoch=lambda number: micro_batches_of(rank))
        engine = SimpleNamespace(distiller=torch.nn.ModuleDict({"feature": module}))
        with pytest.raises(ValueError, match="no such image") as raised:
            calibrate(SimpleNamespace(run=build_run("demo"), engine=engine, schedule=schedule, train_loader=loader))
        return type(raised.value)

    assert on_ranks(2, on_rank) == [ranks.RefusedElsewhere, ValueError]


@pytest.mark.parametrize("kind, count, warns", [("phi_s", 7, True), ("phi_s", 8, False), ("standardize", 7, False)])
def test_phi_s_warns_about_fewer_images_than_channels(caplog, kind, count, warns):
    values = torch.randn(count, 8, generator=torch.Generator().manual_seed(0))
    shares = values[: count // 2], values[count // 2 :]

    def on_rank(rank):
        sums = Sums(shares[rank])
        sums.add(shares[rank])
        fix(Target(kind, 8), sums, where="losses.feature, targets.pooled")

    on_ranks(2, on_rank)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    expected = "losses.feature, targets.pooled: 7 samples are fewer than the 8 channels of the teacher"
    assert bool(said) is warns and all(message.startswith(expected) for message in said)


@pytest.mark.parametrize("world_size", [1, 2])
def test_statistics_come_from_the_first_images_of_all_ranks_and_are_computed_once(tmp_path, demo_cache, world_size):
    finish_ranks(start_ranks(world_size, "-m", __name__, tmp_path))
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen.pop("calls") == 1, "a resumed run reads them from its checkpoint"
    assert all(value < 1e-4 for value in seen.values()), seen


if __name__ == "__main__":
    main(Path(sys.argv[1]))
