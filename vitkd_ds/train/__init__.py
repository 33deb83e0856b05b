"""Training: loop, optimizer step, evaluation, logs and health checks.

Start reading at `loop.train`. `parts` builds a run's components, `step` makes one update, `evaluate` and `results`
measure the student, and `log`, `trackers` and `console` report. `watchdog` and `signals` end hung and preempted runs.
"""
