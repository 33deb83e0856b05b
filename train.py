"""Training script for launchers: `deepspeed train.py --ds_config ds_configs/zero2.json`. See `vitkd_ds.cli`."""

from vitkd_ds.cli import train_main

if __name__ == "__main__":
    train_main()
