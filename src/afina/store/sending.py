"""Arguments of other processes, as plain bytes."""

import pickle
from typing import Any

from afina.errors import InputError


def packed(value: Any, what: str, fix: str) -> bytes:
    """A pickle of `value`. Handed over as they are, tensors would be moved into memory that the processes share.

    Raises:
        InputError: it cannot be pickled; `what` says what it is to the user, `fix` what to do.
    """
    try:
        return pickle.dumps(value)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"{what} cannot be given to other processes.", why=str(error), fix=fix) from error
