"""What results of earlier versions do not say themselves, filled in when one is read.

Since 0.3 a metric says what it is called and whether it is a share, and a result says what its outputs mean; before,
reports knew the tasks of that time by their names.
"""

from typing import Any

_METRICS: dict[str, dict[str, Any]] = {
    "accuracy": {"share": True},
    "agreement": {"share": True, "words": "agreement with the original", "of_original": True},
    "mae": {"words": "mean absolute error"},
    "mae_to_original": {"words": "mean difference from the original", "of_original": True},
}
_SCORES = "scores = next(iter(outputs.values()))[0]\n"
_GUIDES = {
    "classification": {
        "label_word": "classes",
        "meaning": "One score (logit) for each class, in the order of the labels; the largest is the answer.",
        "code": "print(labels[scores.argmax()])",
    },
    "regression": {
        "label_word": "targets",
        "meaning": "One number for each target, in the order of the labels.",
        "code": "print(dict(zip(labels, scores.tolist())))",
    },
}


def completed(raw: dict[str, Any]) -> dict[str, Any]:
    """The plain data of a result, with what its version did not write."""
    metric, task = raw.get("metric"), raw.get("task")
    if isinstance(metric, dict) and not ("words" in metric and "share" in metric):
        known = _METRICS.get(str(metric.get("name")), {})
        raw = {**raw, "metric": {**known, **metric}}
        if known.get("share"):
            for candidate in raw.get("candidates", ()):
                candidate.get("measurements", {}).get("quality", {})["share"] = True
    if "guide" not in raw and isinstance(task, dict):
        raw = {**raw, "guide": _guide(str(task.get("name")), list(task.get("labels", ())), str(raw.get("usage", "")))}
    return raw


def _guide(task: str, labels: list[str], usage: str) -> dict[str, Any]:
    guide = _GUIDES.get(task, {"meaning": "One number for each label, in the order of the labels."})
    word = guide.get("label_word", "outputs")
    use = f"{task} of images" + (f" into {len(labels)} {word}" if word == "classes" else "")
    code = guide.get("code", "")
    if code and "scores = " not in usage:  # lines of a runtime gave the scores of one image themselves
        code = _SCORES + code
    return {**guide, "use": use, "shapes": {"outputs": [len(labels)]}, "code": code}
