"""`Form`: a way to write one layer as a chain of smaller ones, and what such a chain costs.

A convolution with weight `W[o, i, h, w]` (outputs, inputs, kernel) is written as

    svd      W[o,i,h,w] = sum_r    A[o,r] B[r,i,h,w]             k x k, then 1 x 1 (Zhang et al. 2016)
    spatial  W[o,i,h,w] = sum_r    A[o,r,w] B[r,i,h]             k x 1, then 1 x k (Jaderberg et al. 2014)
    tucker   W[o,i,h,w] = sum_rs   A[o,r] G[r,s,h,w] B[s,i]      1 x 1, k x k, 1 x 1 (Kim et al. 2016)
    cp       W[o,i,h,w] = sum_r    A[o,r] V[r,w] U[r,h] B[r,i]   1 x 1, k x 1 and 1 x k by channel, 1 x 1
                                                                 (Lebedev et al. 2015)
    tt       W[o,i,h,w] = sum_rst  A[o,r] V[r,s,w] U[s,t,h] B[t,i]   1 x 1, k x 1, 1 x k, 1 x 1: a tensor train
                                                                 (Oseledets 2011)

A linear layer, and a convolution of 1 x 1, is a matrix, for which all of these are the svd.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Letters of a factor: outputs, inputs, the kernel's height and width; r, s, t are ranks.
OUTPUT = "oihw"


@dataclass(frozen=True)
class Form:
    """One row of the table above.

    Attributes:
        name: As it is asked for.
        factors: The letters of each factor, from the output's to the input's; layers run from the last to the first.
        ranks: Letters of the ranks, from the output's side.
    """

    name: str
    factors: tuple[str, ...]
    ranks: str

    @property
    def equation(self) -> str:
        """What multiplies the factors to the weight, for `torch.einsum`."""
        return f"{','.join(self.factors)}->{OUTPUT}"

    def shapes(self, shape: Sequence[int], ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Of each factor, for a weight `[outputs, inputs, height, width]`."""
        size = dict(zip(OUTPUT + self.ranks, (*shape, *ranks), strict=True))
        return tuple(tuple(size[letter] for letter in factor) for factor in self.factors)

    def parameters(self, shape: Sequence[int], ranks: Sequence[int]) -> int:
        """Numbers that all factors hold."""
        return sum(math.prod(factor) for factor in self.shapes(shape, ranks))

    def macs(self, shape: Sequence[int], ranks: Sequence[int], before: tuple[int, int], after: tuple[int, int]) -> int:
        """Multiply-accumulates of the chain, on an image of size `before` that becomes `after` (height, width)."""
        height, width = before
        total = 0
        for factor, own in reversed(list(zip(self.factors, self.shapes(shape, ranks), strict=True))):
            height = after[0] if "h" in factor else height
            width = after[1] if "w" in factor else width
            total += math.prod(own) * height * width
        return total

    def most(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The largest rank of each letter that means anything: more would not make the chain any nearer."""
        outputs, inputs, height, width = shape
        full = {
            "svd": (min(outputs, inputs * height * width),),
            "spatial": (min(inputs * height, outputs * width),),
            "tucker": (min(outputs, inputs * height * width), min(inputs, outputs * height * width)),
            "cp": (min(outputs * inputs, outputs * height * width, inputs * height * width),),
            "tt": (
                min(outputs, inputs * height * width),
                min(outputs * width, inputs * height),
                min(inputs, outputs * height * width),
            ),
        }
        return full[self.name]


FORMS = {
    form.name: form
    for form in (
        Form("svd", ("or", "rihw"), "r"),
        Form("spatial", ("orw", "rih"), "r"),
        Form("tucker", ("or", "rshw", "si"), "rs"),
        Form("cp", ("or", "rw", "rh", "ri"), "r"),
        Form("tt", ("or", "rsw", "sth", "ti"), "rst"),
    )
}
