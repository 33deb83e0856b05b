"""Float64 twins: one image, one token, one class at a time. They share nothing with the package."""

import math
from itertools import product

import torch
from torch import Tensor


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(x - top) for x in logits]
    return [p / sum(powers) for p in powers]


def cross_entropy(student_BK: Tensor, targets_BK: Tensor) -> float:
    total = 0.0
    for logits, target in zip(student_BK.double().tolist(), targets_BK.double().tolist()):
        total -= sum(t * math.log(p) for t, p in zip(target, softmax(logits)))
    return total / len(student_BK)


def kd(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> float:
    total = 0.0
    for student, teacher in zip(student_BK.double().tolist(), teacher_BK.double().tolist()):
        s = softmax([x / temperature for x in student])
        t = softmax([x / temperature for x in teacher])
        total += temperature**2 * sum(q * (math.log(q) - math.log(p)) for p, q in zip(s, t))
    return total / len(student_BK)


def nkd(student_BK: Tensor, teacher_BK: Tensor, targets: Tensor, temperature: float, gamma: float) -> float:
    total = 0.0
    for i, (student, teacher) in enumerate(zip(student_BK.double().tolist(), teacher_BK.double().tolist())):
        target = int(targets[i].argmax()) if targets.ndim == 2 else int(targets[i])
        total -= softmax(teacher)[target] * math.log(softmax(student)[target])
        others = [k for k in range(len(student)) if k != target]
        s = softmax([student[k] / temperature for k in others])
        t = softmax([teacher[k] / temperature for k in others])
        total -= gamma * temperature**2 * sum(q * math.log(p) for p, q in zip(s, t))
    return total / len(student_BK)


def conv3x3(image_DHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Zero-padded 3 x 3 cross-correlation, one output number at a time."""
    _, H, W = image_DHW.shape
    padded = torch.zeros(len(image_DHW), H + 2, W + 2, dtype=torch.float64)
    padded[:, 1:-1, 1:-1] = image_DHW
    out = torch.zeros(len(weight), H, W, dtype=torch.float64)
    for d, row, column in product(range(len(weight)), range(H), range(W)):
        out[d, row, column] = bias[d] + (padded[:, row : row + 3, column : column + 3] * weight[d]).sum()
    return out


def vitkd(
    state: dict[str, Tensor], inputs: dict[str, Tensor], grid: tuple[int, int], alpha: float, beta: float,
    mask_ratio: float,
) -> tuple[float, float]:  # fmt: skip
    """(mimic, generate), weighted, for equal grids."""
    state = {name: value.double() for name, value in state.items()}
    student, student_deep = inputs["student_shallow"].double(), inputs["student_deep"].double()
    teacher, teacher_deep = inputs["teacher_shallow"].double(), inputs["teacher_deep"].double()

    def align(name: str, feature: Tensor) -> Tensor:
        return state[f"{name}.weight"] @ feature + state[f"{name}.bias"] if "align.weight" in state else feature

    mimic = generate = 0.0
    images, tokens = student_deep.shape[:2]
    for i in range(images):
        for block, p in product(range(2), range(tokens)):
            mimic += float(((align(f"align2.{block}", student[i, block, p]) - teacher[i, block, p]) ** 2).sum())
        order = sorted(range(tokens), key=lambda p: float(inputs["noise"][i, p]))
        masked = order[int(tokens * (1 - mask_ratio)) :]
        rows = [state["mask_token"][0, 0] if p in masked else align("align", student_deep[i, p]) for p in range(tokens)]
        image = torch.stack(rows).T.reshape(-1, *grid)
        hidden = conv3x3(image, state["generation.0.weight"], state["generation.0.bias"]).clamp(min=0)
        restored = conv3x3(hidden, state["generation.2.weight"], state["generation.2.bias"]).flatten(1).T
        generate += sum(float(((restored[p] - teacher_deep[i, p]) ** 2).sum()) for p in masked)
    return alpha * mimic / images, beta / mask_ratio * generate / images
