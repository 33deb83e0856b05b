"""What the losses' configuration says about a run."""

from vitkd_ds.config.losses import LossesConfig, NKDTerm, ViTKDTerm


def test_the_blocks_of_vitkd_are_tapped_and_the_first_where_it_is_off():
    assert LossesConfig(vitkd=ViTKDTerm(weight=1, blocks=(1, 3))).tapped_blocks == (1, 3)
    assert LossesConfig(nkd=NKDTerm(weight=1), vitkd=ViTKDTerm(blocks=(1, 3))).tapped_blocks == (0,)
