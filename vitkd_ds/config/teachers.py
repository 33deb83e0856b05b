"""Names of a run's teachers: the short form of their options, and their form in files.

A recipe's teacher has the usual name. `--teacher.X` is short for `--teachers.teacher.X`, and a run with no other
teacher is stored and shown as by versions that knew only one. Nothing outside this file depends on the usual name.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

T = TypeVar("T")
MANY = "teachers"
USUAL = "teacher"
ANY = "NAME"
"""Stands in options for the name of a part that a run does not have yet."""


def role_of(name: str) -> str:
    """Return the place of a teacher in a run, as in its options: teacher or teachers.NAME."""
    return USUAL if name == USUAL else f"{MANY}.{name}"


def called(name: str) -> str:
    """Return words for a teacher in a sentence."""
    return "the teacher" if name == USUAL else f"the teacher {name}"


def path_of(key: str) -> list[str]:
    """Return the names on the way to a setting, with the short form of a teacher's option written out."""
    path = key.split(".")
    return [MANY, *path] if path[0] == USUAL else path


def shortened(key: str) -> str:
    """Return a setting's key with the usual teacher's place in its short form."""
    path = key.split(".")
    return ".".join([USUAL, *path[2:]]) if path[0] == MANY and path[1:2] in ([USUAL], [ANY]) else key


def of_any(key: str) -> str:
    """Return a setting's key with the place of any teacher written as that of the usual one."""
    path = path_of(key)
    return ".".join([USUAL, *path[2:]]) if path[0] == MANY else key


def by_name(value: Any) -> dict[str, Any]:
    """Return values of teachers by name; anything but a dict is the value of the usual one."""
    return value if isinstance(value, dict) else {USUAL: value}


def stored(values: Mapping[str, T]) -> dict[str, Any]:
    """Return values of teachers by name as files hold them: under "teacher" of the usual one only, None without any."""
    return {USUAL: values.get(USUAL)} if values.keys() <= {USUAL} else {MANY: dict(values)}


def places_in_file(names: Collection[str]) -> list[str]:
    """Return the dotted places at which `stored` puts values of teachers."""
    return [USUAL if {*names} == {USUAL} else f"{MANY}.{name}" for name in names]


def read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of teachers by name from the content of a file."""
    usual = content.get(USUAL)
    return dict(content.get(MANY) or {}) if usual is None else {USUAL: usual}


def settings_to_store(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's nested settings as files hold them. A term's teacher is left out where it is the usual one."""
    tree: dict[str, Any] = {}
    for key, value in run.items():
        tree |= stored(value) if key == MANY else {key: value}
    for name, term in run["losses"].items():
        if isinstance(term, Mapping) and term.get(USUAL) == USUAL:
            own = {key: value for key, value in term.items() if key != USUAL}
            tree["losses"] = tree["losses"] | {name: own}
    return tree


def settings_from_file(_: type, tree: Any) -> Any:
    """Return settings of this version from those of a file; a validator of Run, which leaves all else as it is."""
    if not isinstance(tree, dict) or USUAL not in tree or MANY in tree:
        return tree
    return {MANY if key == USUAL else key: read(tree) if key == USUAL else value for key, value in tree.items()}


def teacher_of(term: Any, names: Collection[str]) -> str:
    """Return the name of the teacher that a term compares; if it chooses none, that of a run's only one."""
    return next(iter(names)) if term.teacher == USUAL and len(names) == 1 else term.teacher


class HasModels:
    """Methods of a run on its models: a student and any number of teachers."""

    @property
    def models(self) -> dict[str, Any]:
        """Settings of all models by their place in the run: student, then teacher or teachers.NAME."""
        return {"student": self.student} | {role_of(name): config for name, config in self.teachers.items()}

    def with_model(self, role: str, config: Any) -> Any:
        """Return a copy with other settings of the model at a place."""
        if role == "student":
            return replace(self, student=config)
        changed = {name: config for name in self.teachers if role_of(name) == role}
        return replace(self, teachers=self.teachers | changed)

    def losses_of(self, teacher: str) -> Any:
        """Return the losses with only those terms active that compare this teacher."""
        off = {
            key: replace(term, weight=0.0)
            for key, term in self.losses.active().items()
            if not term.needs.teacher or teacher_of(term, self.teachers) != teacher
        }
        return replace(self.losses, **off)
