"""Every loss as loops over Python floats, written straight from the equations, and random features for them."""

import math

import numpy as np
import torch

HEIGHT, WIDTH, CHANNELS = 2, 3, 5


def features(rows, columns, seed=0, shared=0.6, size=(HEIGHT, WIDTH), dtype=torch.float64):
    """visual (rows, C, h, w) and audio (columns, C), correlated so that the soft thresholds are not all closed."""
    random = np.random.default_rng(seed)
    audio = random.standard_normal((columns, CHANNELS))
    visual = random.standard_normal((rows, CHANNELS, *size)) * (1 - shared)
    visual += shared * audio[:rows, :, None, None] * random.uniform(0, 2, (rows, 1, *size))
    return torch.from_numpy(visual).to(dtype), torch.from_numpy(audio).to(dtype)


def slavc_features(rows, columns, seed=0):
    (visual_loc, audio_loc), (visual_avc, audio_avc) = features(rows, columns, seed), features(rows, columns, seed + 1)
    return visual_loc, visual_avc, audio_loc, audio_avc


def flip(maps):
    return maps.flip(3)


def cosine(x, y):
    length = math.sqrt(sum(t * t for t in x)) * math.sqrt(sum(t * t for t in y))
    return sum(s * t for s, t in zip(x, y)) / length if length else 0.0


def cosine_maps(visual, audio):
    """maps[n][m] = list of cosines over cells."""
    cells = visual.flatten(2).permute(0, 2, 1).tolist()
    return [[[cosine(cell, sound) for cell in image] for sound in audio.tolist()] for image in cells]


def soft_mean(cells, epsilon, beta):
    weights = [1 / (1 + math.exp(-(c - epsilon) / beta)) for c in cells]
    return sum(w * c for w, c in zip(weights, cells)) / sum(weights)


def mean(cells):
    return sum(cells) / len(cells)


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def row_loss(scores, positives, tau, margin=0.0, extra=None, diagonal="excluded"):
    total = 0
    for i, (row, y) in enumerate(zip(scores, positives)):
        positive = math.exp((row[y] - margin) / tau)
        others = sum(math.exp(s / tau) for j, s in enumerate(row) if j != y)
        others += math.exp(-99 * row[y] / tau) if diagonal == "released" else 0
        others += math.exp(extra[i] / tau) if extra else 0
        total -= math.log(positive / (positive + others))
    return total / len(scores)


def column_loss(scores, positives, tau, margin=0.0):
    total = 0
    for i, y in enumerate(positives):
        positive = math.exp((scores[i][y] - margin) / tau)
        others = sum(math.exp(scores[k][y] / tau) for k in range(len(scores)) if k != i)
        total -= math.log(positive / (positive + others))
    return total / len(scores)


def loop_scores(visual, audio, pool, mean_weight=0.0):
    return [[(1 - mean_weight) * pool(c) + mean_weight * mean(c) for c in row] for row in cosine_maps(visual, audio)]


def loop_margin_nce(
    visual, audio, positives, margin=-0.2, epsilon=0.65, beta=0.03, tau=0.07, symmetric=False, mean_weight=0.0
):
    scores = loop_scores(visual, audio, lambda c: soft_mean(c, epsilon, beta), mean_weight)
    rows = row_loss(scores, positives, tau, margin)
    return (rows + column_loss(scores, positives, tau, margin)) / 2 if symmetric else rows


def loop_lvs(
    visual,
    audio,
    positives,
    epsilon=0.65,
    epsilon_negative=0.4,
    beta=0.03,
    tau=0.07,
    tri_map=True,
    hard_negative=True,
    diagonal="excluded",
    margin=0.0,
    mean_weight=0.0,
):
    scores = loop_scores(visual, audio, lambda c: soft_mean(c, epsilon, beta), mean_weight)
    edge = epsilon_negative if tri_map else epsilon
    own = [row[y] for row, y in zip(cosine_maps(visual, audio), positives)]
    background = [-soft_mean([-c for c in cells], -edge, beta) for cells in own]
    return row_loss(scores, positives, tau, margin, background if hard_negative else None, diagonal)


def loop_ez_vsl(visual, audio, positives, tau=0.03, margin=0.0, mean_weight=0.0):
    scores = loop_scores(visual, audio, max, mean_weight)
    return row_loss(scores, positives, tau, margin) + column_loss(scores, positives, tau, margin)


def loop_ssl_align(
    visuals, audios, positives, tau=0.07, symmetric=False, pool=mean, project_visual=None, project_audio=None
):
    total = 0
    for visual in visuals:
        for audio in audios:
            every = [loop_scores(visual, audio, pool)]
            if project_visual is not None:
                averages = project_visual(visual.mean((2, 3)))
                every.append([[cosine(x, y) for y in project_audio(audio).tolist()] for x in averages.tolist()])
            for scores in every:
                rows = row_loss(scores, positives, tau)
                total += (rows + column_loss(scores, positives, tau)) / 2 if symmetric else rows
    return total


def slavc_log_scores(visual_loc, visual_avc, audio_loc, audio_avc, tau, reduce="sum"):
    """Logarithms of the products of both softmaxes, summed or maximal over cells: a row for each image."""
    loc, avc = cosine_maps(visual_loc, audio_loc), cosine_maps(visual_avc, audio_avc)
    cells, columns = range(len(loc[0][0])), range(len(audio_loc))
    q = []
    for n in range(len(visual_loc)):
        instance = [softmax([avc[n][m][p] / tau for m in columns]) for p in cells]
        space = [softmax([c / tau for c in loc[n][m]]) for m in columns]
        products = [[instance[p][m] * space[m][p] for p in cells] for m in columns]
        q.append([math.log(sum(x) if reduce == "sum" else max(x)) for x in products])
    return q


def loop_slavc(
    visual_loc, visual_avc, audio_loc, audio_avc, positives, momentum, tau=0.03, reduce="sum", negatives="audio"
):
    def term(visual_loc, visual_avc, audio_loc, audio_avc):
        q = slavc_log_scores(visual_loc, visual_avc, audio_loc, audio_avc, tau, reduce)
        rows, columns = row_loss(q, positives, 1.0), column_loss(q, positives, 1.0)
        return {"audio": rows, "image": columns, "both": (rows + columns) / 2}[negatives]

    if momentum is None:
        return term(visual_loc, visual_avc, audio_loc, audio_avc)
    return term(visual_loc, visual_avc, *momentum[2:]) + term(*momentum[:2], audio_loc, audio_avc)


def loop_fnac(visual, audio, positives, tau=0.03, threshold=0.6, weights=(100.0, 100.0, 100.0)):
    size = len(visual)
    scores = loop_scores(visual, audio, max)
    nce = row_loss(scores, positives, tau) + column_loss(scores, positives, tau)
    own = [audio[y].tolist() for y in positives]
    maps = [row[y] for row, y in zip(cosine_maps(visual, audio), positives)]
    averages, foregrounds = [], []
    for n, image in enumerate(visual.flatten(2).permute(0, 2, 1).tolist()):
        cells = [[t / math.sqrt(sum(s * s for s in cell)) for t in cell] for cell in image]
        low, high = min(maps[n]), max(maps[n])
        kept = [(c - low) / (high - low + 1e-5) > threshold for c in maps[n]]
        averages.append([sum(cell[k] for cell in cells) / len(cells) for k in range(CHANNELS)])
        loud = [cell for cell, keep in zip(cells, kept) if keep]
        foregrounds.append([sum(cell[k] for cell in loud) / len(cells) for k in range(CHANNELS)])

    def relation(x):
        return [softmax([sum(s * t for s, t in zip(a, b)) / tau for b in x]) for a in x]

    sounds = [[t / math.sqrt(sum(s * s for s in a)) for t in a] for a in own]
    audio_audio, mean_mean, front_front = relation(sounds), relation(averages), relation(foregrounds)
    visual_audio = [softmax([row[y] / tau for y in positives]) for row in scores]

    def distance(p, q):
        return sum(abs(p[i][j] - q[i][j]) for i in range(size) for j in range(size)) / size**2

    terms = (distance(audio_audio, visual_audio), distance(audio_audio, front_front), distance(mean_mean, visual_audio))
    return nce + sum(w * t for w, t in zip(weights, terms))


def loop_ssl_tie(visual, audio, transformed, positives, weight=1.0, distance="mse", **options):
    own = [[row[y] for row, y in zip(cosine_maps(v, audio), positives)] for v in (visual, transformed)]
    turned = [[row[r * WIDTH + WIDTH - 1 - c] for r in range(HEIGHT) for c in range(WIDTH)] for row in own[0]]
    power = {"mse": 2, "l1": 1}[distance]
    apart = mean([abs(x - y) ** power for one, two in zip(turned, own[1]) for x, y in zip(one, two)])
    contrast = loop_lvs(visual, audio, positives, **options) + loop_lvs(transformed, audio, positives, **options)
    return contrast / 2 + weight * apart


def loop_hard_positives(
    visual,
    audio,
    similar_visual,
    similar_audio,
    positives,
    combine="mean",
    epsilon=0.65,
    beta=0.03,
    tau=0.07,
    margin=0.0,
    symmetric=False,
    mean_weight=0.0,
):
    def scores(v, a):
        return loop_scores(v, a, lambda c: soft_mean(c, epsilon, beta), mean_weight)

    every, total = scores(visual, audio), 0
    to_similar, of_similar, both = (
        scores(*pair) for pair in ((visual, similar_audio), (similar_visual, audio), (similar_visual, similar_audio))
    )
    for i, y in enumerate(positives):
        four = [every[i][y], to_similar[i][i], of_similar[i][y], both[i][i]]
        positive = {
            "mean": mean(four),
            "sum": sum(four),
            "logsumexp": tau * math.log(sum(math.exp(x / tau) for x in four)),
        }[combine]
        numerator = math.exp((positive - margin) / tau)
        sounds = sum(math.exp(s / tau) for j, s in enumerate(every[i]) if j != y)
        images = sum(math.exp(row[y] / tau) for k, row in enumerate(every) if k != i)
        for others in (sounds, images) if symmetric else (sounds,):
            total -= math.log(numerator / (numerator + others)) / (2 if symmetric else 1)
    return total / len(positives)


def loop_attention_pooled(visual, audio):
    pooled = []
    for n, image in enumerate(visual.flatten(2).permute(0, 2, 1).tolist()):
        cosines = [cosine(cell, audio[n].tolist()) for cell in image]
        low, high = min(cosines), max(cosines)
        weights = [(c - low) / (high - low + 1e-10) for c in cosines]
        pooled.append([sum(w * cell[k] for w, cell in zip(weights, image)) for k in range(len(image[0]))])
    return torch.tensor(pooled, dtype=torch.float64)


def loop_sspl(visuals, audio, head):
    (z1, p1), (z2, p2) = (head(loop_attention_pooled(visual, audio)) for visual in visuals)
    pairs = [(p1, z2), (p2, z1)]
    return -sum(cosine(p, z) for ps, zs in pairs for p, z in zip(ps.tolist(), zs.tolist())) / (2 * len(audio))
