"""`vitkd-ds plan`: predict a run's speed, memory use and disk reads on a cluster. Start reading at `text.py`."""
