"""Equivalent mutants: no test can notice them, because they do not change the package's behaviour.

File to qualified name of the function to "old => new", as printed by `make mutants`, to the reason in one line.
"""

EQUIVALENT: dict[str, dict[str, dict[str, str]]] = {
    "data/augment/augmenter.py": {
        "Augmenter.plan": {
            "zip(('top', 'left', 'height', 'width'), boxes_B4.T, strict=True)"
            " => zip(('top', 'left', 'height', 'width'), boxes_B4.T, strict=False)": (
                "draw_rectangles always returns four columns, as its name in axes says"
            ),
        },
    },
    "data/sources/webdataset.py": {
        "_class_text": {
            "return file.read(member.size).decode('utf-8-sig', 'replace').strip()"
            " => return file.read(member.size).decode('utf-8-sig_', 'replace').strip()": (
                "Python drops underscores at the end of a codec's name"
            ),
        },
    },
}
