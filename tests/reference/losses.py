"""Float64 twins: one image, one token, one class at a time. They share nothing with the package."""

import math

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
    D, H, W = image_DHW.shape
    out = torch.zeros(len(weight), H, W, dtype=torch.float64)
    for d in range(len(weight)):
        for row in range(H):
            for column in range(W):
                value = float(bias[d])
                for dr in (-1, 0, 1):
                    for dc in (-1, 0, 1):
                        if 0 <= row + dr < H and 0 <= column + dc < W:
                            value += float(image_DHW[:, row + dr, column + dc] @ weight[d, :, dr + 1, dc + 1])
                out[d, row, column] = value
    return out


def vitkd(
    state: dict[str, Tensor], inputs: dict[str, Tensor], grid: tuple[int, int], alpha: float, beta: float,
    mask_ratio: float,
) -> tuple[float, float]:  # fmt: skip
    """(mimic, generate), weighted, for equal grids."""
    state = {name: value.double() for name, value in state.items()}
    shallow_s, deep_s, shallow_t, deep_t = (
        inputs[name].double() for name in ("student_shallow", "student_deep", "teacher_shallow", "teacher_deep")
    )
    mimic = generate = 0.0
    images, tokens = deep_s.shape[:2]
    for i in range(images):
        for block in range(2):
            for p in range(tokens):
                feature = shallow_s[i, block, p]
                if "align.weight" in state:
                    feature = state[f"align2.{block}.weight"] @ feature + state[f"align2.{block}.bias"]
                mimic += float(((feature - shallow_t[i, block, p]) ** 2).sum())
        order = sorted(range(tokens), key=lambda p: float(inputs["noise"][i, p]))
        masked = order[int(tokens * (1 - mask_ratio)) :]
        rows = []
        for p in range(tokens):
            feature = deep_s[i, p]
            if "align.weight" in state:
                feature = state["align.weight"] @ feature + state["align.bias"]
            rows.append(state["mask_token"][0, 0] if p in masked else feature)
        image = torch.stack(rows).T.reshape(-1, *grid)
        hidden = conv3x3(image, state["generation.0.weight"], state["generation.0.bias"]).clamp(min=0)
        restored = conv3x3(hidden, state["generation.2.weight"], state["generation.2.bias"]).flatten(1).T
        generate += sum(float(((restored[p] - deep_t[i, p]) ** 2).sum()) for p in masked)
    return alpha * mimic / images, beta / mask_ratio * generate / images
