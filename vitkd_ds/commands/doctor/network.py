"""The network: how fast all ranks sum a tensor, and how fast each pair of nodes exchanges one.

A sum goes at the pace of its slowest link, so a single bad cable or a fall-back to Ethernet slows all; the pairs say
which node it is. Sizes are small enough for seconds.
"""

from collections.abc import Callable

import torch

from vitkd_ds.commands.doctor.patient import Patient
from vitkd_ds.commands.doctor.rows import Row, listed, ok, warning
from vitkd_ds.engine import ranks
from vitkd_ds.engine.processes import synchronised_time

SUM_MIB, SUM_REPEATS = 64, 5
"""Of fp32 summed over all ranks; a gradient bucket of ds_configs/zero2.json has 190 MiB."""
PAIR_MIB, PAIR_REPEATS = 16, 3
MAX_ROUNDS = 63
"""Each node meets one other per round: up to 64 nodes, every pair is measured."""
LEAST_SUM_GB_S = {("cuda", 1): 4.0, ("cuda", 2): 1.5, ("cpu", 1): 0.05, ("cpu", 2): 0.05}
"""Warn below; by device, and one node or more. A ring gives half of its slowest link: PCIe 4 without peer access
carries about 10 GB/s, 25 Gbit/s Ethernet 3."""
LEAST_PAIR_PART = 0.5
"""Warn about pairs below this part of the fastest one."""


def check_network(patient: Patient) -> list[Row]:
    """Sum over all ranks, then exchanges between nodes. Collective."""
    if ranks.world_size() == 1:
        return [ok("network", "one rank, nothing to send")]
    num_nodes = len(set(patient.nodes))
    seconds = sum_seconds(patient.device)
    gb_per_s, least = SUM_MIB * 2**20 / 1e9 / seconds, LEAST_SUM_GB_S[patient.device.type, min(2, num_nodes)]
    found = f"{ranks.world_size()} ranks sum {SUM_MIB} MiB at {gb_per_s:.2f} GB/s ({1000 * seconds:.0f} ms)"
    rows = [ok("network", found)]
    if gb_per_s < least:
        advice = "see in NCCL_DEBUG=INFO which transport is used, and that NVLink or InfiniBand is among them"
        rows = [warning("network", f"{found}, expected at least {least:g}", advice)]
    return rows + (pair_rows(patient) if num_nodes > 1 else [])


def sum_seconds(device: torch.device) -> float:
    """Time of one sum on the slowest rank, the best of a few. Collective."""
    numbers = torch.ones(SUM_MIB * 2**18, device=device)
    ranks.sum_over_ranks(numbers)  # connects
    best = min(_timed(lambda: ranks.sum_over_ranks(numbers), device) for _ in range(SUM_REPEATS))
    return max(ranks.from_all(best))


def _timed(function: Callable[[], object], device: torch.device) -> float:
    ranks.all_true(True, device)  # start together
    start = synchronised_time()
    function()
    return synchronised_time() - start


def pair_rows(patient: Patient) -> list[Row]:
    """Bandwidth and latency between the first ranks of all pairs of nodes. Collective."""
    firsts = {node: patient.nodes.index(node) for node in dict.fromkeys(patient.nodes)}
    first_ranks = list(firsts.values())
    rounds = pairings(len(first_ranks))[:MAX_ROUNDS]
    mine = {}
    for pairs in rounds:
        for a, b in pairs:
            if ranks.rank() in (first_ranks[a], first_ranks[b]):
                peer = first_ranks[b] if ranks.rank() == first_ranks[a] else first_ranks[a]
                pair = patient.nodes[first_ranks[a]], patient.nodes[first_ranks[b]]
                mine[pair] = exchange_speed(peer, patient.device)
        ranks.all_true(True, patient.device)  # the next round
    speeds = {pair: speed for part in ranks.from_all(mine) for pair, speed in part.items()}
    return [slowest_row(speeds)]


def exchange_speed(peer: int, device: torch.device) -> tuple[float, float]:
    """GB/s in each direction and the milliseconds of the smallest message, with one other rank that calls this too."""
    seconds = []
    for size in (1, PAIR_MIB * 2**18):
        sent, received = torch.ones(size, device=device), torch.empty(size, device=device)
        ranks.exchange(sent, received, peer)  # connects
        times = []
        for _ in range(PAIR_REPEATS):
            start = synchronised_time()
            ranks.exchange(sent, received, peer)
            times.append(synchronised_time() - start)
        seconds.append(min(times))
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
