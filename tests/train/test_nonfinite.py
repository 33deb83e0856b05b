"""A loss that is not finite on one rank stops all ranks before the update."""

from vitkd_ds.cli import parse_run
from vitkd_ds.engine import ranks
from vitkd_ds.train import loop


def observe(seen, workdir):
    """Rank 1's labels become nan at the third update: what each rank was stopped with. For observe.py."""
    flags = {"recipe": "demo_plain", "debug": "true", "workdir": str(workdir), "checkpoint.every_steps": "2"}
    mix_step = loop.mix_step

    def poisoned(*args, step, place):
        images_BCHW, targets_BK = mix_step(*args, step=step, place=place)
        return images_BCHW, targets_BK * float("nan") if step == 2 and ranks.rank() == 1 else targets_BK

    loop.mix_step = poisoned
    try:
        loop.train(parse_run((), flags))
        told = "no rank noticed"
    except loop.NonFiniteError as error:
        told = str(error)
    seen["nonfinite"] = ranks.from_all(told)
    seen["nonfinite is done"] = (workdir / "done").exists()


def test_all_ranks_stop_and_name_step_terms_lr_and_the_last_good_checkpoint(observed):
    told = observed[2]["nonfinite"]
    for rank, text in enumerate(told):
        assert f"stopped before update 3, rank {rank}, lr " in text
        assert "last good checkpoint step00000002" in text
    assert "ce nan" in told[1] and "ce nan" not in told[0]
    assert not observed[2]["nonfinite is done"]
