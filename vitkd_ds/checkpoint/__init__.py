"""Save, find, check, load and export checkpoints of a run, and lock the run folder.

- `save.py`: save and publish. Start reading here.
- `load.py`: find an intact checkpoint and restore the run.
- `manifest.py`, `files.py`: checksums, and atomic writes to disk.
- `folder.py`: check whether a run may continue in its folder.
- `lock.py`, `holder.py`: lock that lets only one job at a time use a run folder.
- `export.py`: the exported student, as plain timm weights.
"""
