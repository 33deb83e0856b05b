"""`vitkd-ds doctor`: find in two minutes what would end or slow a run later, before the job's days begin.

One file per question. Each check is a function of a `Patient` that yields rows. They call what builds and steps a run
(`vitkd_ds.train`); only what training never asks is written here. Nothing is left behind, nothing is downloaded, and no
check trains on an image of the user's.
"""
