"""Names of a run's teachers, in options and in files.

A recipe's teacher has the default name "teacher". `--teacher.X` is short for `--teachers.teacher.X`. A run whose only
teacher has the default name is stored and shown as in earlier versions, which allowed only one teacher. No other module
depends on the default name.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

T = TypeVar("T")
MANY = "teachers"
USUAL = "teacher"
ANY = "NAME"
"""Placeholder in options for the name of a teacher that the run does not have yet."""


def role_of(name: str) -> str:
    """Return the role of a teacher, which is the prefix of its options: teacher or teachers.NAME."""
    return USUAL if name == USUAL else f"{MANY}.{name}"


def called(name: str) -> str:
    """Return the words that name a teacher in messages: "the teacher" or "the teacher NAME"."""
    return "the teacher" if name == USUAL else f"the teacher {name}"


def path_of(key: str) -> list[str]:
    """Split a setting's key into names, with `teacher.X` expanded to `teachers.teacher.X`."""
    path = key.split(".")
    return [MANY, *path] if path[0] == USUAL else path


def shortened(key: str) -> str:
    """Return a setting's key with `teachers.teacher.X` shortened to `teacher.X`."""
    path = key.split(".")
    return ".".join([USUAL, *path[2:]]) if path[0] == MANY and path[1:2] in ([USUAL], [ANY]) else key


def of_any(key: str) -> str:
    """Return a setting's key with `teachers.NAME.X` replaced by `teacher.X`, whatever the name."""
    path = path_of(key)
    return ".".join([USUAL, *path[2:]]) if path[0] == MANY else key


def by_name(value: Any) -> dict[str, Any]:
    """Return a dict from teacher name to value. A value that is not a dict belongs to the default teacher."""
    return value if isinstance(value, dict) else {USUAL: value}


def stored(values: Mapping[str, T]) -> dict[str, Any]:
    """Return values by teacher name in the form that files store.

    The form is {"teacher": value} if there is only the default teacher, {"teacher": None} if there is no teacher, and
    otherwise {"teachers": {name: value}}.
    """
    return {USUAL: values.get(USUAL)} if values.keys() <= {USUAL} else {MANY: dict(values)}


def places_in_file(names: Collection[str]) -> list[str]:
    """Return, for each teacher, the dotted key of its value in the result of `stored`."""
    return [USUAL if {*names} == {USUAL} else f"{MANY}.{name}" for name in names]


def read(content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert file content in the form of `stored` back to a dict from teacher name to value."""
    usual = content.get(USUAL)
    return dict(content.get(MANY) or {}) if usual is None else {USUAL: usual}


def settings_to_store(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's nested settings as config.json stores them.

    The setting `teacher` of a loss term is omitted if it has its default.
    """
    tree: dict[str, Any] = {}
    for key, value in run.items():
        tree |= stored(value) if key == MANY else {key: value}
    for name, term in run["losses"].items():
        if isinstance(term, Mapping) and term.get(USUAL) == USUAL:
            own = {key: value for key, value in term.items() if key != USUAL}
            tree["losses"] = tree["losses"] | {name: own}
    return tree


def settings_from_file(_: type, tree: Any) -> Any:
    """Convert settings as config.json stores them to the fields of `Run`. Return any other input unchanged.

    This is the validator of `Run`.
    """
    if not isinstance(tree, dict) or USUAL not in tree or MANY in tree:
        return tree
    return {MANY if key == USUAL else key: read(tree) if key == USUAL else value for key, value in tree.items()}


def teacher_of(term: Any, names: Collection[str]) -> str:
    """Return the name of a term's teacher. The default name also stands for a run's only teacher."""
    return next(iter(names)) if term.teacher == USUAL and len(names) == 1 else term.teacher


class HasModels:
    """Methods of a run that concern its models: a student and any number of teachers."""

    @property
    def models(self) -> dict[str, Any]:
        """Settings of all models by role: student, then teacher or teachers.NAME."""
        return {"student": self.student} | {role_of(name): config for name, config in self.teachers.items()}

    def with_model(self, role: str, config: Any) -> Any:
        """Return a copy of the run with the settings `config` for the model of this role."""
        if role == "student":
            return replace(self, student=config)
        changed = {name: config for name in self.teachers if role_of(name) == role}
        return replace(self, teachers=self.teachers | changed)

    def losses_of(self, teacher: str) -> Any:
        """Return the losses with only this teacher's terms active."""
        off = {
            key: replace(term, weight=0.0)
            for key, term in self.losses.active().items()
            if not term.needs.teacher or teacher_of(term, self.teachers) != teacher
        }
        return replace(self.losses, **off)
