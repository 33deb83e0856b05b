"""Checkpoints of a run: save, find, check, load and export them, and lock the run folder.

- `save.py`: save and publish. Start reading here.
- `load.py`: find an intact checkpoint and restore the run.
- `manifest.py`, `files.py`: checksums, and atomic writes to disk.
- `folder.py`: whether a run may continue in its folder.
- `lock.py`, `holder.py`: one job per run folder.
- `export.py`: the exported student, as plain timm weights.
"""
