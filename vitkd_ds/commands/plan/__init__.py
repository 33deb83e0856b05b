"""`vitkd-ds plan`: predict speed, memory and disk use of a run on a cluster. Start reading at `text.py`."""
