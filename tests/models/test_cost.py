"""A model's cost; operation counts against published ones are in tests/commands/plan/test_shapes.py."""

from vitkd_ds.models.cost import step_gflops


def test_a_training_step_costs_three_student_forwards_and_one_teacher_forward():
    costs = {"student": {"gflops": 2.0}, "teacher": {"gflops": 5.0}}
    assert step_gflops(costs) == 11 and step_gflops(costs | {"teacher": None}) == 6
