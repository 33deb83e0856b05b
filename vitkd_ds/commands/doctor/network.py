"""The network: how fast all ranks sum a tensor, and how fast each pair of nodes exchanges one.

A sum goes at the pace of its slowest link, so a single bad cable or a fall-back to Ethernet slows all; the pairs say
which node it is. Sizes are small enough for seconds.
"""

from collections.abc import Callable, Iterator

import torch

from vitkd_ds.commands.doctor.rows import Patient, Row, judged, listed, ok, warning
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import device_name, synchronised_time

SUM_MIB, PAIR_MIB = 64, 16
"""fp32 numbers that are summed, and exchanged; a gradient bucket of ds_configs/zero2.json has 190 MiB."""
REPEATS = 5
MAX_ROUNDS = 63
"""Each node meets one other per round: up to 64 nodes, every pair is measured."""
LEAST_SUM_GB_S = {"nvlink": (40.0, 5.0), "cuda": (4.0, 1.5), "cpu": (0.05, 0.05)}
"""Warn below; by kind of device, on one node and on more. A ring gives half of its slowest link: PCIe 4 without peer
access carries about 10 GB/s, 25 Gbit/s Ethernet 3; NVLink carries hundreds, and nodes with it have 200 Gbit/s or more
between them. By data sheets, not measured."""
NVLINK = ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA B200")
"""Names of GPUs that come on boards with NVLink; those of PCIe and NVL cards are longer."""
LEAST_PAIR_PART = 0.5
"""Warn about pairs below this part of the fastest one."""


def check_network(patient: Patient) -> Iterator[Row]:
    """Sum over all ranks, then exchange between the nodes. Collective."""
    if ranks.world_size() == 1:
        yield ok("network", "one rank, nothing to send")
        return
    num_nodes, device = len(set(patient.nodes)), patient.device
    numbers = torch.ones(SUM_MIB * 2**18, device=device)
    # All start together; the slowest rank counts.
    best = _best_seconds(lambda: ranks.sum_over_ranks(numbers), before=lambda: ranks.all_true(True, device))
    seconds = max(ranks.from_all(best))
    gb_per_s, least = SUM_MIB * 2**20 / 1e9 / seconds, least_sum_gb_s(device_name(), num_nodes)
    found = f"{ranks.world_size()} ranks sum {SUM_MIB} MiB at {gb_per_s:.2f} GB/s ({1000 * seconds:.0f} ms)"
    advice = "see in NCCL_DEBUG=INFO which transport is used, and that NVLink or InfiniBand is among them"
    yield judged(gb_per_s >= least, "network", found, f"expected at least {least:g}", advice)
    if num_nodes > 1:
        yield slowest_row(pair_speeds(patient))


def least_sum_gb_s(name: str, num_nodes: int) -> float:
    """GB/s at which ranks on such devices should sum."""
    kind = "cpu" if name == "cpu" else "nvlink" if name in NVLINK else "cuda"
    return LEAST_SUM_GB_S[kind][num_nodes > 1]


def _best_seconds(function: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    times = []
    for _ in range(1 + REPEATS):
        before()
        start = synchronised_time()
        function()
        times.append(synchronised_time() - start)
    return min(times[1:])  # the first one connects


def pair_speeds(patient: Patient) -> dict[tuple[str, str], tuple[float, float]]:
    """GB/s each way, and milliseconds of the smallest message, of the first ranks of each pair of nodes. Collective."""
    nodes, device, mine = list(dict.fromkeys(patient.nodes)), patient.device, {}
    first_ranks = [patient.nodes.index(node) for node in nodes]
    for pairs in pairings(len(nodes))[:MAX_ROUNDS]:
        for a, b in pairs:
            both = first_ranks[a], first_ranks[b]
            if ranks.rank() in both:
                peer = sum(both) - ranks.rank()
                least, most = (exchange_seconds(peer, size, device) for size in (1, PAIR_MIB * 2**18))
                mine[nodes[a], nodes[b]] = PAIR_MIB * 2**20 / 1e9 / most, 1000 * least
        ranks.all_true(True, device)  # the next round
    return {pair: speed for part in ranks.from_all(mine) for pair, speed in part.items()}


def exchange_seconds(peer: int, size: int, device: torch.device) -> float:
    """Seconds in which `size` fp32 numbers go to one other rank, which calls this too, and as many come back."""
    sent, received = torch.ones(size, device=device), torch.empty(size, device=device)
    return _best_seconds(lambda: ranks.exchange(sent, received, peer))


def slowest_row(speeds: dict[tuple[str, str], tuple[float, float]]) -> Row:
    """The row that names the slowest pair of nodes, given the result of `pair_speeds`."""
    slowest, (least_gb_s, latency_ms) = min(speeds.items(), key=lambda item: item[1][0])
    most_gb_s = max(gb_per_s for gb_per_s, _ in speeds.values())
    found = f"slowest of {len(speeds)} pairs of nodes: {' - '.join(slowest)}, {least_gb_s:.2f} GB/s each way, "
    found += f"{latency_ms:.2f} ms; fastest {most_gb_s:.2f} GB/s"
    slow = [pair for pair, (gb_per_s, _) in speeds.items() if gb_per_s < LEAST_PAIR_PART * most_gb_s]
    if not slow:
        return ok("pairs of nodes", found)
    # The node with the bad cable is in all slow pairs.
    shared = set.intersection(*map(set, slow))
    whose = f"; {shared.pop()} is in all slow ones" if len(shared) == 1 and len(slow) > 1 else ""
    named = listed([" - ".join(pair) for pair in slow])
    advice = "leave the node out with sbatch --exclude=NODE, and tell your administrators"
    return warning("pairs of nodes", f"{found}; slow: {named}{whose}", advice)


def pairings(count: int) -> list[list[tuple[int, int]]]:
    """Rounds in which each of `count` meets at most one other, so that after all rounds each has met each once."""
    seats, rounds = [*range(count), *([None] if count % 2 else [])], []
    for _ in range(len(seats) - 1):
        opposite = zip(seats[: len(seats) // 2], reversed(seats))
        rounds.append([(min(pair), max(pair)) for pair in opposite if None not in pair])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds
