"""`Form`: a way to write one layer as a chain of smaller ones, and what such a chain costs.

A convolution with weight `W[o, i, h, w]` (outputs, inputs, kernel) is written as

    svd      W[o,i,h,w] = sum_r    A[o,r] B[r,i,h,w]             k x k, then 1 x 1 (Zhang et al. 2016)
    spatial  W[o,i,h,w] = sum_r    A[o,r,w] B[r,i,h]             k x 1, then 1 x k (Jaderberg et al. 2014)
    tucker   W[o,i,h,w] = sum_rs   A[o,r] G[r,s,h,w] B[s,i]      1 x 1, k x k, 1 x 1 (Kim et al. 2016)
    cp       W[o,i,h,w] = sum_r    A[o,r] V[r,w] U[r,h] B[r,i]   1 x 1, k x 1 and 1 x k by channel, 1 x 1
                                                                 (Lebedev et al. 2015)
    tt       W[o,i,h,w] = sum_rst  A[o,r] V[r,s,w] U[s,t,h] B[t,i]   1 x 1, k x 1, 1 x k, 1 x 1: a tensor train
                                                                 (Oseledets 2011)

(On the right, the kernels of the layers in the order in which they run.) A linear layer, and a convolution of 1 x 1, is
a matrix, for which all of these are the svd.
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
        name: The name in options and records: `tucker`.
        factors: The letters of each factor, from the output's to the input's; layers run from the last to the first.
        ranks: The letters of the ranks, from the output's side.

    Example:
        >>> tucker, shape = FORMS["tucker"], (12, 8, 3, 3)  # 12 outputs, 8 inputs, a kernel of 3 x 3
        >>> tucker.equation
        'or,rshw,si->oihw'
        >>> tucker.shapes(shape, (5, 4))
        ((12, 5), (5, 4, 3, 3), (4, 8))
        >>> tucker.parameters(shape, (5, 4))  # 60 + 180 + 32, for the 864 of the layer
        272
        >>> tucker.macs(shape, (5, 4), before=(10, 10), after=(5, 5))  # 32 * 100 + 180 * 25 + 60 * 25
        9200
        >>> tucker.most(shape)
        (12, 8)
    """

    name: str
    factors: tuple[str, ...]
    ranks: str

    @property
    def equation(self) -> str:
        """The equation by which `torch.einsum` multiplies the factors to the weight."""
        return f"{','.join(self.factors)}->{OUTPUT}"

    def shapes(self, shape: Sequence[int], ranks: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The shape of each factor, for a weight of shape `[outputs, inputs, height, width]`."""
        sizes = dict(zip(OUTPUT + self.ranks, (*shape, *ranks), strict=True))
        return tuple(tuple(sizes[letter] for letter in factor) for factor in self.factors)

    def parameters(self, shape: Sequence[int], ranks: Sequence[int]) -> int:
        """How many numbers the factors hold together, for a weight of shape `[outputs, inputs, height, width]`."""
        return sum(math.prod(factor) for factor in self.shapes(shape, ranks))

    def macs(self, shape: Sequence[int], ranks: Sequence[int], before: tuple[int, int], after: tuple[int, int]) -> int:
        """Multiply-accumulates of the chain for one image.

        A layer of the chain whose kernel has a height makes the image as high as it is in the end, and one whose kernel
        has a width as wide: with a stride of 2, what runs before that is four times as much work for each weight.

        Args:
            shape: The weight's, `[outputs, inputs, height, width]`.
            ranks: The ranks of the chain.
            before: Height and width of the image that the chain reads.
            after: Height and width of what it gives.
        """
        height, width = before
        total = 0
        for factor, sizes in reversed(list(zip(self.factors, self.shapes(shape, ranks), strict=True))):
            height = after[0] if "h" in factor else height
            width = after[1] if "w" in factor else width
            total += math.prod(sizes) * height * width
        return total

    def most(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The largest rank of each letter that is allowed, for a weight of shape `[outputs, inputs, height, width]`.

        It is the smaller side of the matrix that the rank belongs to, for `spatial` (outputs x width) by
        (inputs x height): at that rank the chain can be the layer itself, and more would not make it nearer. For `cp`,
        whose rank has no bound that is tight, it is the smallest product of two sides with the kernel taken as one.
        """
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
