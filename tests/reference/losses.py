"""Float64 reference losses: one image, token and class at a time, without any code of the package."""

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


def wttm(student, teacher, *, gamma, weighted=True):
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        own, powers = softmax(s), [p**gamma for p in softmax(t)]
        u = sum(powers)
        divergence = sum(p / u * math.log(p / u / q) for p, q in zip(powers, own))
        total += (u if weighted else 1) * divergence
    return total / len(student)


def pearson(x, y):
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    spread = [math.sqrt(sum((a - mean) ** 2 for a in values)) for values, mean in ((x, mean_x), (y, mean_y))]
    return covariance / (spread[0] * spread[1] + 1e-8)


def dist(student, teacher, *, beta, gamma):
    own, other = ([softmax(row) for row in logits.tolist()] for logits in (student, teacher))
    images = [1 - pearson(s, t) for s, t in zip(own, other)]
    classes = [1 - pearson(s, t) for s, t in zip(zip(*own), zip(*other))]
    return beta * sum(images) / len(images) + gamma * sum(classes) / len(classes)


def dkd(student, teacher, labels, *, alpha, beta, temperature):
    total = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist()):
        own, other = softmax([x / temperature for x in s]), softmax([x / temperature for x in t])
        pairs = [(p[label], 1 - p[label]) for p in (own, other)]
        on_label = sum(q * math.log(q / p) for p, q in zip(*pairs))
        rest = [[p[k] / (1 - p[label]) for k in range(len(p)) if k != label] for p in (own, other)]
        on_others = sum(q * math.log(q / p) for p, q in zip(*rest))
        total += temperature**2 * (alpha * on_label + beta * on_others)
    return total / len(student)


def standardized_kd(student, teacher, *, temperature):
    def standard(row):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in row) / (len(row) - 1))
        return [(x - mean) / (deviation + 1e-7) / temperature for x in row]

    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        own, other = softmax(standard(s)), softmax(standard(t))
        total += temperature**2 * sum(q * math.log(q / p) for p, q in zip(own, other))
    return total / len(student)


def smooth_l1(x, y):
    return 0.5 * (x - y) ** 2 if abs(x - y) < 1 else abs(x - y) - 0.5


def vkd(projected, teacher):
    total = 0.0
    for own, other in zip(projected.tolist(), teacher.tolist()):
        mean = sum(other) / len(other)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in other) / len(other) + 1e-5)
        total += sum(smooth_l1(p, (x - mean) / deviation) for p, x in zip(own, other)) / len(own)
    return total / len(projected)


def spectral(student, teacher, grid):
    """Evaluate the definition of the Fourier transform for the frequencies that a real transform keeps."""
    (rows, columns), (images, _, dim), width = grid, student.shape, teacher.shape[2]
    total, count = 0.0, 0
    for b in range(images):
        for d in range(dim):
            first, last = d * width // dim, -(-(d + 1) * width // dim)
            pooled = teacher[b, :, first:last].mean(1)
            difference = (student[b, :, d] - pooled).view(rows, columns).tolist()
            for u in range(rows):
                for v in range(columns // 2 + 1):
                    angles = [(y, x, -2 * math.pi * (u * y / rows + v * x / columns)) for y in range(rows)
                              for x in range(columns)]  # fmt: skip
                    real = sum(difference[y][x] * math.cos(angle) for y, x, angle in angles)
                    imaginary = sum(difference[y][x] * math.sin(angle) for y, x, angle in angles)
                    total += (real**2 + imaginary**2) / (rows * columns)
                    count += 2
    return total / count


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def relation_local(student, teacher, *, temperature):
    total, count = 0.0, 0
    for own, other in zip(student.tolist(), teacher.tolist()):
        for i in range(len(own)):
            rows = [softmax([cosine(each[i], token) / temperature for token in each]) for each in (own, other)]
            total += sum(q * math.log(q / p) for p, q in zip(*rows))
            count += 1
    return total / count


def relation_global(student, teacher, queue, *, temperature):
    total = 0.0
    for own, other in zip(student.tolist(), teacher.tolist()):
        rows = [softmax([cosine(each, past) / temperature for past in queue.tolist()]) for each in (own, other)]
        total += sum(q * math.log(q / p) for p, q in zip(*rows))
    return total / len(student)


def attention(student, teacher):
    total, rows = 0.0, 0
    for own, other in zip(student.tolist(), teacher.tolist()):
        for s, t in zip(own, other):
            total += sum(q / sum(t) * math.log(q / sum(t) * sum(s) / p) for p, q in zip(s, t))
            rows += 1
    return total / rows


def feature(pooled, patches, target, target_patches):
    """Return the part of the class token and that of the patches."""
    classes = [1 - cosine(p, t) for p, t in zip(pooled.tolist(), target.tolist())]
    tokens = [(p, t) for own, other in zip(patches.tolist(), target_patches.tolist()) for p, t in zip(own, other)]
    total = 0.0
    for p, t in tokens:
        total += 0.9 * (1 - cosine(p, t)) + 0.1 * sum(map(smooth_l1, p, t)) / len(p)
    return sum(classes) / len(classes), total / len(tokens)


def balance(steps, *, lr, decay):
    """Return the factors at each step, given the terms' values at each step."""
    w, found = [0.0] * len(steps[0]), []
    for values in steps:
        p = softmax(w)
        found.append([len(w) * x for x in p])
        logs = [math.log(value) for value in values]

        def objective(w, logs=logs):
            return 0.5 * sum(x * log for x, log in zip(softmax(w), logs)) ** 2

        slopes, h = [], 1e-6
        for i in range(len(w)):
            up, down = (w[:i] + [w[i] + sign * h] + w[i + 1 :] for sign in (1, -1))
            slopes.append((objective(up) - objective(down)) / (2 * h))
        w = [x - lr * (slope + decay * x) for x, slope in zip(w, slopes)]
    return found
