"""`deepspeed train.py --ds_config ds_configs/zero2.json`: gives the command line to vitkd_ds.cli."""

from vitkd_ds.cli import train_main

if __name__ == "__main__":
    train_main()
