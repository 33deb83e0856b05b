"""Tests of waits between host and GPU, and between streams, on a simulated device; no GPU is needed.

On the simulated device, work is queued on streams and runs only when something waits for it, in a random order that
streams and events allow. A program that forgets a wait therefore computes something else, in one of a few orders.

- `streams.py`: streams, events and the random order.
- `memory.py`: freed memory is reused at once unless `record_stream` forbids it.
- `kernels.py`: operations become kernels, which hold addresses; copies to and from pinned and pageable host memory.
- `names.py`: device tensors are CPU tensors for torch, but say that they are on "cuda:0".
- `device.py`: `late_device` puts everything together, for torch.cuda and for DeepSpeed's accelerator.

`test_device.py` has a correct and a wrong program for each rule. The other tests run the package and DeepSpeed's own
ZeRO-2 and ZeRO-3 code in a few random orders, and in hundreds with `make test-long`. The results must have the bits of
the CPU. `test_waits.py` lists each wait in the package with the test that leaves it out and notices that.

Limits: there is one rank. A collective is a copy on the current stream, so NCCL's own streams are not simulated. A
sharded teacher gathers by copying its own parts. Backward runs on the current stream, not on the stream of each
operation's forward. Memory is reused only for the same size. Compiled code and CUDA graphs do not run on the device.
"""
