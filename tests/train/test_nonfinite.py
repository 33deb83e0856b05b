"""A loss that is not finite on one rank stops all ranks before the update."""


def test_all_ranks_stop_and_name_step_terms_lr_and_the_last_good_checkpoint(observed):
    told = observed[2]["nonfinite"]
    for rank, text in enumerate(told):
        assert f"stopped before update 3, rank {rank}, lr " in text
        assert "last good checkpoint step00000002" in text
    assert "ce nan" in told[1] and "ce nan" not in told[0]
    assert not observed[2]["nonfinite is done"]
