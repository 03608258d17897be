"""Static int8 quantization of a captured network (PT2E): per-channel weights, per-tensor activations."""

import logging

# At import, torchao registers an enum in a way that torch calls deprecated: no user can act on that warning.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

from afina.techniques.quantize.apply import QuantizeConfig, apply  # noqa: E402

__all__ = ["QuantizeConfig", "apply"]
