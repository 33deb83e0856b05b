"""Settings of a run, their checks and their command-line options. Start reading in `run`."""
