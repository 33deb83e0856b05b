"""The network: how fast all ranks sum a tensor, and how fast each pair of nodes exchanges one.

A sum goes at the pace of its slowest link, so a single bad cable or a fall-back to Ethernet slows all; the pairs say
which node it is. Sizes are small enough for seconds.
"""

from collections.abc import Callable

import torch

from vitkd_ds.commands.doctor.patient import Patient
from vitkd_ds.commands.doctor.rows import Row, judged, listed, ok, warning
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import synchronised_time

SUM_MIB, SUM_REPEATS = 64, 5
"""fp32 numbers that are summed over all ranks; a gradient bucket of ds_configs/zero2.json has 190 MiB."""
PAIR_MIB, PAIR_REPEATS = 16, 3
MAX_ROUNDS = 63
"""Each node meets one other per round: up to 64 nodes, every pair is measured."""
LEAST_SUM_GB_S = {("cuda", 1): 4.0, ("cuda", 2): 1.5, ("cpu", 1): 0.05, ("cpu", 2): 0.05}
"""Warn below; by device, and one node or more. A ring gives half of its slowest link: PCIe 4 without peer access
carries about 10 GB/s, 25 Gbit/s Ethernet 3."""
LEAST_PAIR_PART = 0.5
"""Warn about pairs below this part of the fastest one."""


def check_network(patient: Patient) -> list[Row]:
    """Sum over all ranks, then exchange between the nodes. Collective."""
    if ranks.world_size() == 1:
        return [ok("network", "one rank, nothing to send")]
    num_nodes = len(set(patient.nodes))
    seconds = sum_seconds(patient.device)
    gb_per_s, least = SUM_MIB * 2**20 / 1e9 / seconds, LEAST_SUM_GB_S[patient.device.type, min(2, num_nodes)]
    found = f"{ranks.world_size()} ranks sum {SUM_MIB} MiB at {gb_per_s:.2f} GB/s ({1000 * seconds:.0f} ms)"
    advice = "see in NCCL_DEBUG=INFO which transport is used, and that NVLink or InfiniBand is among them"
    row = judged(gb_per_s >= least, "network", found, problem=f"expected at least {least:g}", advice=advice)
    return [row, slowest_row(pair_speeds(patient))] if num_nodes > 1 else [row]


def sum_seconds(device: torch.device) -> float:
    """Seconds of one sum on the slowest rank, the best of a few. Collective."""
    numbers = torch.ones(SUM_MIB * 2**18, device=device)
    ranks.sum_over_ranks(numbers)  # connects
    best = []
    for _ in range(SUM_REPEATS):
        ranks.all_true(True, device)  # start together
        best.append(_seconds(lambda: ranks.sum_over_ranks(numbers)))
    return max(ranks.from_all(min(best)))


def _seconds(function: Callable[[], object]) -> float:
    start = synchronised_time()
    function()
    return synchronised_time() - start


def pair_speeds(patient: Patient) -> dict[tuple[str, str], tuple[float, float]]:
    """What `exchange_speed` finds between the first ranks of each pair of nodes. Collective."""
    nodes = list(dict.fromkeys(patient.nodes))
    first_ranks = [patient.nodes.index(node) for node in nodes]
    mine = {}
    for pairs in pairings(len(nodes))[:MAX_ROUNDS]:
        for a, b in pairs:
            both = first_ranks[a], first_ranks[b]
            if ranks.rank() in both:
                mine[nodes[a], nodes[b]] = exchange_speed(sum(both) - ranks.rank(), patient.device)
        ranks.all_true(True, patient.device)  # the next round
    return {pair: speed for part in ranks.from_all(mine) for pair, speed in part.items()}


def exchange_speed(peer: int, device: torch.device) -> tuple[float, float]:
    """GB/s in each direction and the milliseconds of the smallest message, with one other rank that calls this too."""
    seconds = []
    for size in (1, PAIR_MIB * 2**18):
        sent, received = torch.ones(size, device=device), torch.empty(size, device=device)
        times = [_seconds(lambda: ranks.exchange(sent, received, peer)) for _ in range(1 + PAIR_REPEATS)]
        seconds.append(min(times[1:]))  # the first one connects
    return PAIR_MIB * 2**20 / 1e9 / seconds[1], 1000 * seconds[0]


def slowest_row(speeds: dict[tuple[str, str], tuple[float, float]]) -> Row:
    """The row that names the slowest pair.

    Args:
        speeds: GB/s and milliseconds of each pair of nodes.
    """
    slowest = min(speeds, key=lambda pair: speeds[pair][0])
    fastest_gb_s = max(gb_per_s for gb_per_s, _ in speeds.values())
    found = (
        f"slowest of {len(speeds)} pairs of nodes: {' - '.join(slowest)}, {speeds[slowest][0]:.2f} GB/s each way, "
        f"{speeds[slowest][1]:.2f} ms; fastest {fastest_gb_s:.2f} GB/s"
    )
    slow = [pair for pair, (gb_per_s, _) in speeds.items() if gb_per_s < LEAST_PAIR_PART * fastest_gb_s]
    if not slow:
        return ok("pairs of nodes", found)
    shared = set.intersection(*map(set, slow))
    whose = f"; {' and '.join(sorted(shared))} is in all slow ones" if len(shared) == 1 and len(slow) > 1 else ""
    named = listed([" - ".join(pair) for pair in slow])
    advice = "leave the node out with sbatch --exclude=NODE, and tell your administrators"
    return warning("pairs of nodes", f"{found}; slow: {named}{whose}", advice)


def pairings(count: int) -> list[list[tuple[int, int]]]:
    """Rounds in which each of `count` meets at most one other, so that after all rounds each has met each once."""
    seats = [*range(count), *([None] if count % 2 else [])]
    rounds = []
    for _ in range(len(seats) - 1):
        opposite = zip(seats[: len(seats) // 2], reversed(seats))
        rounds.append([(min(pair), max(pair)) for pair in opposite if None not in pair])
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds
