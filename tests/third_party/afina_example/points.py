"""A task whose targets no table can hold: any number of points in each image, read from a JSON beside the images.

`points.json` holds, for each image, a list of places (x, y) in its pixels. A network for it gives one map of logits
`[N, 1, height, width]`, of any resolution; a point is where the map is more than 0 and more than around.
"""

import json

import numpy as np
import torch
from torch.nn import functional as F

from afina.errors import InputError
from afina.tasks import OWN, ReadTargets, Task, misfit
from afina.types import MetricInfo

FILE = "points.json"


class Points(Task):
    """Quality is F1 over all points of all images; a point is found where one is given at most a cell away."""

    metric = MetricInfo("f1", higher_is_better=True, share=True)
    agreement = MetricInfo("f1_to_original", higher_is_better=True, share=True, of_original=True)
    label_word = "kinds of points"
    reads = OWN
    targets_follow = True
    meaning = (
        "A logit for each cell of the image; a point is where it is more than 0 and more than in the cells around."
    )
    code = """\
logits = next(iter(outputs.values()))[0, 0]
print(np.argwhere(logits > 0)[:, ::-1].tolist())
"""

    @classmethod
    def read_targets(cls, files):
        """The points of each image of `points.json`."""
        if not files.has(FILE):
            raise InputError(f"{files.label} has no {FILE}.", fix="Write into it the points of each image.")
        content = files.read(FILE)
        points = {name: np.reshape(places, (-1, 2)) for name, places in json.loads(content).items()}
        return ReadTargets(("point",), points, content)

    def fit_target(self, target, view):
        """Places as shares of the network's input, float `[k, 2]`; what it does not see is left out."""
        places = view.points(target) / (view.input.width, view.input.height)
        return places[((places >= 0) & (places < 1)).all(axis=1)]

    def collate(self, targets):
        """A list: images have different numbers of points."""
        return [torch.as_tensor(target) for target in targets]

    def head_outputs(self):
        """The network's map stays as it is."""

    def check_outputs(self, shapes):
        """One map of one channel."""
        shape = next(iter(shapes.values()))
        if len(shapes) != 1 or len(shape) != 4 or shape[1] != 1:
            raise misfit(self, "one map [N, 1, height, width]", shapes)

    def loss(self, outputs, targets, *, label_smoothing=0.0):
        """Binary cross-entropy of each cell, where cells with points count as much as all others together."""
        (logits,) = outputs.values()
        cells = torch.zeros_like(logits)
        for image, places in zip(cells[:, 0], targets, strict=True):
            x, y = (places * torch.tensor([image.shape[1], image.shape[0]])).long().T
            image[y, x] = 1.0
        weight = (cells == 0).sum() / cells.sum().clamp_min(1)
        return F.binary_cross_entropy_with_logits(logits, cells, pos_weight=weight)

    def distance(self, outputs, reference, *, temperature=4.0):
        """Mean squared difference."""
        return F.mse_loss(next(iter(outputs.values())), next(iter(reference.values())))

    def decode(self, outputs):
        """The points of each image as shares of it, float `[k, 2]` each."""
        (logits,) = outputs.values()
        height, width = logits.shape[2:]
        padded = np.pad(np.nan_to_num(logits[:, 0], nan=-1.0), ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
        around = np.max([padded[:, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
                         for y in (-1, 0, 1) for x in (-1, 0, 1)], axis=0)  # fmt: skip
        finite = np.isfinite(logits[:, 0]).all(axis=(1, 2))[:, None, None]
        peaks = (logits[:, 0] > 0) & (logits[:, 0] >= around) & finite
        return [(np.argwhere(image)[:, ::-1] + 0.5) / (width, height) for image in peaks]

    def evidence(self, predictions, targets):
        """Points found, points given, points there: float64 `[N, 3]`."""
        return np.array([_counts(given, np.asarray(there)) for given, there in zip(predictions, targets, strict=True)])

    def value(self, evidence):
        """F1."""
        found, given, there = evidence.sum(axis=0)
        return float(2 * found / max(given + there, 1))

    def plain(self, predictions):
        """The places."""
        return [places.tolist() for places in predictions]


def _counts(given, there):
    left, found = list(there), 0
    for place in given:
        near = [i for i, other in enumerate(left) if np.abs(other - place).max() <= 0.15]
        if near:
            found += 1
            del left[near[0]]
    return [float(found), float(len(given)), float(len(there))]
