"""`vitkd-ds doctor`: what would end or slow a run later is said in two minutes, before the job's days begin.

One file per question; each check is a function of a `Patient` that returns rows, and `examine` runs them in order on
all ranks. Nothing is left behind, nothing is downloaded, and no check trains on an image.
"""
