"""MkDocs hook that adds the pages, the files they link to, and the Python reference to the site.

Pages and linked files keep their paths in the repository, so relative links work in both places. The reference is
generated from the docstrings of the modules below.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["*.md", "docs/*.md", "slurm/*.md", "ds_configs/*.md", "benchmarks/*.md"]
OURS = ["site/iframe-worker.js", "site/tables.css"]
LINK = re.compile(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)")
REFERENCE = {
    "Loading and features": ["vitkd_ds.models.features", "vitkd_ds.models.distiller"],
    "Losses": [
        f"vitkd_ds.losses.{name}" for name in (
            "cross_entropy", "kd", "nkd", "dkd", "distillation_token", "wttm", "dist", "vitkd", "vkd", "spectral",
            "attention", "feature", "relation", "balance", "part",
        )
    ],
    "Data": ["vitkd_ds.data.loader", "vitkd_ds.data.epochs", "vitkd_ds.train.mixing", "vitkd_ds.data.crops"],
    "Settings": ["vitkd_ds.config.run", "vitkd_ds.config.losses", "vitkd_ds.config.term"],
    "Engines": ["vitkd_ds.engine.student", "vitkd_ds.engine.teacher", "vitkd_ds.engine.flat"],
}  # fmt: skip
"""Heading in the reference -> modules with the public names below it."""


def on_files(files: Files, config: object) -> Files:
    """Return the files of the site: pages, linked files and the reference."""
    pages = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
    linked = {(page.parent / target).resolve() for page in pages for target in LINK.findall(page.read_text())}
    others = sorted(path for path in linked - {*pages} if path.is_file())
    outside = [path for path in others if not path.is_relative_to(ROOT)]
    assert not outside, f"pages link to files outside the repository: {outside}"
    kept = Files([file for file in files if not file.src_uri.endswith(".md")])
    for path in [*pages, *others]:
        uri = path.relative_to(ROOT).as_posix()
        kept.append(File.generated(config, uri, abs_src_path=str(path)))
    for name in OURS:
        kept.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    kept.append(File.generated(config, "reference.md", content=reference()))
    return kept


def reference() -> str:
    """Return the reference page: one heading per topic, with its modules."""
    lines = ["# Python reference", "", "Generated from docstrings. Start with the [Python API](docs/python.md).", ""]
    for heading, modules in REFERENCE.items():
        lines += [f"## {heading}", ""]
        for module in modules:
            lines += [f"::: {module}", "    options: {heading_level: 3}", ""]
    return "\n".join(lines)
