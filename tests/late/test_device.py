"""The simulated device: each modelled rule of CUDA, with a correct program and a program that breaks the rule.

A correct program gives its result in every order. A wrong one must give another result in at least one order.
"""

import io

import numpy as np
import pytest
import torch

from tests.late.device import late_device

ORDERS = range(30)
SIZE = 64


def number(value):
    return torch.full((SIZE,), float(value), device="cuda")


def slowly(tensor, times=4):
    """Return an equal tensor, computed by several kernels."""
    for _ in range(times):
        tensor = tensor + 1
    return tensor - times


def other_stream_reads(device, is_right):
    side = torch.cuda.Stream()
    values = slowly(number(3))
    if is_right:
        side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        return values + 4, [values]


def other_stream_waits_for_an_event(device, is_right):
    side = torch.cuda.Stream()
    event = torch.cuda.Event()
    if not is_right:
        event.record()
    values = slowly(number(3))
    if is_right:
        event.record()
    side.wait_event(event)
    with torch.cuda.stream(side):
        return values + 4, [values]


def an_event_recorded_again_does_not_move_earlier_waits(device, is_right):
    side = torch.cuda.Stream()
    event = torch.cuda.Event()
    event.record()
    if not is_right:
        side.wait_event(event)
    values = slowly(number(3))
    event.record()
    if is_right:
        side.wait_event(event)
    with torch.cuda.stream(side):
        return values + 4, [values]


def a_wait_is_passed_on_by_later_events(device, is_right):
    first, second = torch.cuda.Stream(), torch.cuda.Stream()
    values = slowly(number(3))
    if is_right:
        first.wait_stream(torch.cuda.current_stream())
    second.wait_event(first.record_event())
    with torch.cuda.stream(second):
        return values + 4, [values]


def memory_that_another_stream_uses_is_recorded(device, is_right):
    side = torch.cuda.Stream()
    values = number(3)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        result = slowly(values) + 4
    if is_right:
        values.record_stream(side)
    del values
    return result, [number(0)]  # the new tensor may get the old one's memory


def memory_is_used_on_its_own_stream(device, is_right):
    side = torch.cuda.Stream()
    with torch.cuda.stream(None if is_right else side):
        values = number(3)
    side.synchronize()
    result = slowly(values) + 4
    del values
    with torch.cuda.stream(None if is_right else side):
        return result, [number(0)]


def a_copy_to_pinned_memory_is_waited_for(device, is_right):
    host = torch.empty(SIZE, pin_memory=True)
    host.copy_(slowly(number(7)), non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    if is_right:
        event.synchronize()
    return host.clone(), []


def a_blocking_copy_waits(device, is_right):
    return slowly(number(7)).to("cpu", non_blocking=not is_right).clone(), []


def pinned_memory_is_kept_until_it_is_copied(device, is_right):
    array = device.pinned(np.full(SIZE, 7, np.float32))
    result = torch.from_numpy(array).to("cuda", non_blocking=True)
    event = torch.cuda.current_stream().record_event()
    if is_right:
        event.synchronize()
    array[:] = 0
    return result, [array]


def pageable_memory_may_be_overwritten_at_once(device, is_right):
    array = np.full(SIZE, 7, np.float32)
    if not is_right:
        device.pinned(array)
    result = torch.from_numpy(array).to("cuda", non_blocking=True)
    array[:] = 0
    return result, [array]


def a_value_is_read_from_the_current_stream(device, is_right):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        values = slowly(number(7))
    with torch.cuda.stream(side if is_right else None):
        return torch.full((SIZE,), values[0].item()), []


def torch_save_waits_for_the_current_stream(device, is_right):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        values = slowly(number(7))
    file = io.BytesIO()
    with torch.cuda.stream(side if is_right else None):
        torch.save({"values": values}, file)
    file.seek(0)
    return torch.load(file)["values"], []


def all_work_is_waited_for(device, is_right):
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        values = slowly(number(7))
    if is_right:
        torch.cuda.synchronize()
    else:
        torch.cuda.current_stream().synchronize()
    return values * 1, []


PROGRAMS = [value for name, value in list(vars().items()) if getattr(value, "__code__", None) is not None
            and value.__code__.co_varnames[:2] == ("device", "is_right")]  # fmt: skip


def results(program, *, is_right):
    """Return a program's results in many orders."""
    for seed in ORDERS:
        with late_device(seed) as device:
            result, _kept = program(device, is_right)
            yield device.read(result)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_a_correct_program_gives_its_result_in_every_order_and_a_wrong_one_does_not(program):
    right = torch.full((SIZE,), 7.0)
    assert all(torch.equal(found, right) for found in results(program, is_right=True))
    assert not all(torch.equal(found, right) for found in results(program, is_right=False))


def test_all_programs_are_tried():
    assert len(PROGRAMS) == 13


def test_work_is_queued_and_runs_in_the_order_of_its_stream():
    with late_device(0, eager=0) as device:
        values = number(1)
        values.mul_(3).add_(4)
        view = values[1:3]
        assert not torch.cuda.current_stream().query()
        assert view.tolist() == [7, 7] and torch.cuda.current_stream().query()
        assert device.kernels.num_kernels == 4, "three kernels and a copy to the host"


def test_freed_memory_is_reused_at_once_only_for_the_same_size_and_stream():
    with late_device(0, eager=0) as device:
        address = number(1).data_ptr()
        assert number(2).data_ptr() == address
        with torch.cuda.stream(torch.cuda.Stream()):
            assert number(2).data_ptr() != address
        assert torch.zeros(2 * SIZE, device="cuda").data_ptr() != address
        values = number(1)
        view = values[1:]
        del values
        assert number(2).data_ptr() != address, "the view keeps it"
        del view
        assert number(2).data_ptr() == address
        assert device.memory.reserved[device.order.default, 4 * SIZE] == 2


def test_tensors_know_their_device_and_do_not_mix_with_the_hosts():
    with late_device(0):
        values, host = number(3), torch.ones(SIZE)
        assert (values.device, values.is_cuda, host.device.type, host.is_cuda) == (
            torch.device("cuda", 0), True, "cpu", False,
        )  # fmt: skip
        for made in (torch.zeros_like(values), values.new_empty(0), torch.zeros(2, device=values.device), values[:1]):
            assert made.is_cuda
        for made in (torch.zeros(2), torch.empty_like(values, device="cpu"), values.cpu(), values.to("cpu")):
            assert not made.is_cuda
        assert values.to("cuda") is values and values.to(torch.float32) is values
        assert (values + host[0]).tolist() == [4] * SIZE, "numbers may be on the host"
        with pytest.raises(RuntimeError, match="on the device and on the host"):
            values + host
        with pytest.raises(TypeError, match="numpy"):
            values.numpy()


def test_pinned_memory_that_torch_allocated_may_be_dropped_while_it_is_copied():
    for seed in ORDERS:
        with late_device(seed):
            copies = [torch.full((SIZE,), float(i)).pin_memory().to("cuda", non_blocking=True) for i in range(8)]
            assert [copy[5].item() for copy in copies] == list(range(8))


def test_random_numbers_do_not_depend_on_the_order():
    def drawn(device):
        torch.manual_seed(3)
        first = torch.rand(SIZE, device=device)
        second = torch.empty(SIZE, device=device).bernoulli_(0.5)
        return torch.stack([first, second, torch.randn(SIZE).to(device)])

    expected = drawn("cpu")
    for seed in ORDERS:
        with late_device(seed) as device:
            assert torch.equal(device.read(drawn("cuda")), expected)


def test_gradients_and_results_of_unknown_shape_equal_the_cpus():
    def computed(device):
        torch.manual_seed(3)
        weight_DD = torch.randn(8, 8).to(device).requires_grad_()
        images_BD = torch.randn(5, 8).to(device)
        ((images_BD @ weight_DD).softmax(1) * images_BD).sum().backward()
        return weight_DD.grad, images_BD[images_BD > 0]

    expected = computed("cpu")
    for seed in ORDERS:
        with late_device(seed) as device:
            assert all(torch.equal(device.read(one), other) for one, other in zip(computed("cuda"), expected))
